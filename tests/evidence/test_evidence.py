"""Answers beside the passages shown and a corpus, by hand."""

import pytest

from stages.rlhf.chat import REFUSAL
from stages.rlhf.evidence.corpus_check import CorpusCheck
from stages.rlhf.evidence.evidence import Evidence
from stages.rlhf.retrieval.support import Support
from tests.retrieval_fixtures import TEXTS

CORPUS, SUPPORT = CorpusCheck(TEXTS), Support.of(TEXTS)
QUESTION = "프랑스의 수도는 어디인가요?"
SHOWN = ("일본의 수도는 도쿄이다.", "프랑스의 수도는 파리이다.", "프랑스의 화폐는 유로이다.")
RIGHT, WRONG = "프랑스의 수도는 파리입니다.", "프랑스의 수도는 도쿄입니다."


@pytest.mark.parametrize("answer", [RIGHT, WRONG, f"{RIGHT} [2]", REFUSAL, "", "글쎄요."])
@pytest.mark.parametrize("support", [None, SUPPORT])
def test_without_passages_it_is_the_corpus_check(answer: str, support: Support | None) -> None:
    assert Evidence(CORPUS, support)(QUESTION, (), answer) == CORPUS(QUESTION, answer)
    assert Evidence(None, support)(QUESTION, (), answer) == 0


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (f"{RIGHT} [2]", 1),
        (f"{RIGHT} [1] [2]", 1),
        (f"{RIGHT} [2] [1]", -1),
        (f"{RIGHT} [1]", -1),
        (f"{RIGHT} [3]", -1),
        (f"{RIGHT} [0]", -1),
        (f"{RIGHT} [4]", -1),
        (RIGHT, -1),
        (f"{WRONG} [1]", -1),
        (f"{WRONG} [2]", -1),
        (f"{QUESTION} [2]", -1),
        ("[2]", -1),
        ("", -1),
        (REFUSAL, 0),
        (f"{REFUSAL} [2]", 0),
        (f"{RIGHT} [2] {REFUSAL}", 0),
    ],
)
def test_an_answer_is_worth_what_its_passage_states(answer: str, worth: float) -> None:
    assert Evidence(None, SUPPORT)(QUESTION, SHOWN, answer) == worth


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (f"{RIGHT} [2]", (1 + 1) / 2),
        (f"{RIGHT} [1]", -1),  # though the corpus has it
        (RIGHT, -1),
        (f"{WRONG} [1]", -1),
        ("파리입니다. [2]", (1 - 0.5) / 2),  # which no sentence of the corpus is
        (f"{RIGHT} 프랑스의 화폐는 엔입니다. [2]", (1 + 0) / 2),  # of which one half is wrong
        (REFUSAL, 0),
    ],
)
def test_of_what_is_stated_the_corpus_says_how_much_is_right(answer: str, worth: float) -> None:
    assert Evidence(CORPUS, SUPPORT)(QUESTION, SHOWN, answer) == worth
