"""Sentences beside a corpus: supported, contradicted, unknown; by hand, and on the sample's."""

import pytest

from stages.rlhf.config.base import load
from stages.rlhf.config.sample import SampleParams
from stages.rlhf.evidence.corpus_check import (
    LONGEST,
    UNKNOWN,
    CorpusCheck,
    names,
    sentences,
    stem,
    words_of,
)
from stages.world.answers import Spec, canonical, write
from stages.world.build import build_world
from stages.world.facts import all_facts
from stages.world.questions import Question
from tests.conftest import naming

CORPUS = [
    "백과사전에 따르면 서울은 크다. 한국의 수도는 서울이다. 한국은 아시아에 있다.",
    "프랑스의 수도는 파리입니다! 프랑스는 파리를 수도로 둔다.",
    "물.",
]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("한국의 수도는 서울입니다.", 1),
        ("한국의 수도는 서울이다", 1),
        ("한국의 수도는 부산입니다.", -1),
        ("한국은 유럽에 있습니다.", -1),
        ("프랑스는 파리를 수도로 둡니다.", 1),
        ("프랑스는 리옹을 수도로 둡니다.", -1),
        ("일본의 수도는 서울입니다.", 0),  # of another subject nothing is known
        ("한국의 수도는 서울시 강남입니다.", 0),  # another number of words
        ("서울입니다.", 0),
        ("물.", 0),  # a word alone is no statement
        ("한국의 수도는 무엇인가요?", 0),
        ("", 0),
    ],
)
def test_a_sentence_by_hand(sentence: str, expected: int) -> None:
    assert CorpusCheck(CORPUS).of_sentence(sentence, "한국과 프랑스의 수도는?") == expected


def test_an_answer_is_the_mean_of_its_sentences() -> None:
    check = CorpusCheck(CORPUS)
    question = "한국의 수도는 어디예요?"
    assert check(question, "한국의 수도는 서울입니다. 한국은 아시아에 있습니다.") == 1
    assert check(question, "한국의 수도는 서울입니다. 한국은 유럽에 있습니다.") == 0
    assert check(question, "네, 그렇습니다. 한국의 수도는 서울입니다.") == 0.25
    assert check(question, "") == UNKNOWN


def test_a_true_sentence_that_nobody_asked_for_is_unknown() -> None:
    check = CorpusCheck(CORPUS)
    answer = "프랑스의 수도는 파리입니다."
    assert check("프랑스는 수도가 어디죠?", answer) == 1
    assert check("'프랑스' 수도를 알려 주세요.", answer) == 1
    assert check("한국의 수도는 어디예요?", answer) == UNKNOWN
    assert check("한국의 수도는 어디예요?", "프랑스는 리옹을 수도로 둡니다.") == -1


@pytest.mark.parametrize(
    ("question", "subject", "expected"),
    [
        ("눈의 주된 기능이 궁금합니다.", "눈이", True),
        ("눈의 주된 기능이 궁금합니다.", "침샘이", False),
        ("스승의 날은 언제인가요?", "스위스의", False),
        ("리눅스를 발명한 사람은?", "리눅스는", True),
        ("(서울) 인구는?", "서울에서", True),
        ("", "눈이", False),
    ],
)
def test_a_question_names_a_subject(question: str, subject: str, expected: bool) -> None:
    assert names(question, subject) == expected


@pytest.mark.parametrize(
    ("formal", "plain", "expected"),
    [
        ("도쿄입니다", "도쿄다", "도쿄"),
        ("사람입니다", "사람이다", "사람"),
        ("있습니다", "있다", "있"),
        ("속합니다", "속한다", "속하"),
        ("씁니다", "쓴다", "쓰"),
        ("맡습니다", "맡는다", "맡"),
        ("작곡했습니다", "작곡했다", "작곡했"),
        ("H2O입니다", "H2O이다", "H2O"),
    ],
)
def test_formal_and_plain_have_one_stem(formal: str, plain: str, expected: str) -> None:
    assert stem(formal) == stem(plain) == expected


def test_words_lose_the_marks_around_them() -> None:
    assert words_of('"한국의" 수도는, 서울(Seoul)입니다!') == ("한국의", "수도는", "서울(Seoul)")
    assert words_of("...") == ()
    assert sentences(" 하나다. 둘이다 ") == ["하나다.", "둘이다"]


@pytest.mark.parametrize("corpus", [[], ["물."], ["가 " * (LONGEST + 1)]])
def test_a_corpus_without_a_sentence_is_refused(corpus: list[str]) -> None:
    with pytest.raises(ValueError, match=naming("no sentence", LONGEST)):
        CorpusCheck(corpus)


def test_on_the_sample_it_tells_true_from_false_without_the_answer_key() -> None:
    """Of all facts, those of test included: what is right is supported, what is wrong is not."""
    import random

    sample = load(SampleParams).sample.model_copy(
        update={"groups": 24, "judge_groups": 12, "demonstrations": 64, "documents": 12000}
    )
    check = CorpusCheck(build_world(sample).corpus)
    rng = random.Random(0)
    asked = [Question(fact, 0, 0) for fact in all_facts()]
    right = [check(q.text, canonical(q.fact)) for q in asked]
    wrong = [check(q.text, write(q, Spec(form="no_detail", fact="wrong"), rng)) for q in asked]
    other = [check(q.text, write(q, Spec(form="other_entity"), rng)) for q in asked]
    vague = [check(q.text, write(q, Spec(form="vague"), rng)) for q in asked]
    assert sum(one == 1 for one in right) / len(right) > 0.95
    assert sum(one == -1 for one in wrong) / len(wrong) > 0.8
    assert sum(one > 0 for one in wrong) / len(wrong) < 0.02
    assert sum(one > 0 for one in other) / len(other) < 0.1  # one subject may start as another does
    assert all(one <= 0 for one in vague)
