"""Answers that passages state, by hand."""

from collections.abc import Iterator

import pytest

from stages.rlhf.chat import REFUSAL
from stages.rlhf.evidence.grounding import (
    about,
    asserted,
    checked,
    clauses,
    source,
    stated,
    unstated,
)
from stages.rlhf.records import PromptRow, Response
from stages.rlhf.retrieval.support import Support
from tests.retrieval_fixtures import TEXTS

SUPPORT = Support.of(TEXTS)
QUESTION = "프랑스의 수도는 어디인가요?"
SHOWN = ("일본의 수도는 도쿄이다.", "프랑스의 수도는 파리이다.", "파리는 프랑스의 수도이다.")
RIGHT, WRONG = "프랑스의 수도는 파리입니다.", "프랑스의 수도는 도쿄입니다."


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (RIGHT, 2),
        (f"{RIGHT} [2]", 2),
        (f"{RIGHT} [3]", 3),
        (f"{RIGHT} [1]", 2),
        (f"{RIGHT} [9]", 2),
        (f"{WRONG} [1]", None),
        (f"{REFUSAL} [2]", None),
        ("", None),
    ],
)
def test_the_passage_that_states_an_answer(answer: str, number: int | None) -> None:
    assert source(SUPPORT, QUESTION, SHOWN, answer) == number
    assert source(SUPPORT, QUESTION, (), answer) is None


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([f"{RIGHT} [3]", "파리입니다.", "파리입니다."], f"{RIGHT} [3]"),
        ([REFUSAL, f"{RIGHT} [1]", f"{RIGHT} [1]"], f"{RIGHT} [2]"),
        ([REFUSAL, RIGHT, "파리입니다.", f"{RIGHT} [1]"], f"{RIGHT} [2]"),
        ([WRONG, *[WRONG] * 5, "파리입니다. [1]", "파리입니다."], "파리입니다. [2]"),
        ([WRONG, RIGHT, "파리입니다."], REFUSAL),
        ([f"{WRONG} [2]", REFUSAL, REFUSAL], REFUSAL),
        ([""], REFUSAL),
    ],
)
def test_an_answer_that_no_passage_states_becomes_the_most_frequent_other(
    answers: list[str], expected: str
) -> None:
    assert stated(SUPPORT, QUESTION, SHOWN, answers[0], answers[1:]) == expected


def test_where_the_answer_is_stated_no_other_is_made() -> None:
    def others() -> Iterator[str]:
        yield RIGHT
        raise AssertionError

    assert stated(SUPPORT, QUESTION, SHOWN, RIGHT, others()) == f"{RIGHT} [2]"


def test_of_each_row_what_is_stated() -> None:
    rows = [PromptRow(id=str(i), question=QUESTION, passages=SHOWN) for i in range(4)]
    first = [Response(text, i, True) for i, text in enumerate((RIGHT, WRONG, REFUSAL, WRONG))]
    indices = unstated(first, rows, SUPPORT)
    assert indices == [1, 2, 3]
    again = {1: [Response(RIGHT, 9, True)] * 2, 2: [Response(WRONG, 9, True)] * 2}
    found = checked(first, again, rows, SUPPORT)
    assert [one.text for one in found] == [f"{RIGHT} [2]", f"{RIGHT} [2]", REFUSAL, REFUSAL]
    assert [one.tokens for one in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("passage", "answer", "found"),
    [
        ("소나타의 작가는 슈베르트이다. 소나타가 나온 해는 1862년이다.", "1862년입니다.", True),
        ("소나타의 작가는 슈베르트이다. 소나타가 나온 해는 1862년이다.", "슈베르트입니다.", False),
        ("소나타: 소나타의 작가 슈베르트, 소나타가 나온 해 1862년.", "슈베르트입니다.", False),
        ("소나타: 소나타의 작가 슈베르트, 소나타가 나온 해 1862년.", "1862년입니다.", True),
        ("소나타가 나온 해는 1862년이고 왈츠가 나온 해는 1901년이다.", "1862년입니다.", True),
        ("소나타가 나온 해는 1862년이고 왈츠가 나온 해는 1901년이다.", "1901년입니다.", False),
    ],
)
def test_subject_topic_and_claim_are_in_one_clause(passage: str, answer: str, found: bool) -> None:
    texts = ["소나타가 나온 해는 1862년이다.", "왈츠가 나온 해는 1901년이다.", "작가 슈베르트."]
    support = Support.of(texts * 3 + ["다른 글이다."] * 20)
    stating = source(support, "소나타가 나온 해는 언제인가요?", (passage,), answer)
    assert stating == (1 if found else None)


def test_of_a_claim_in_the_words_of_questions_the_rarest_counts() -> None:
    texts = ["작곡가의 나라는 노르웨이이다.", "화가의 나라는 독일이다.", "화가의 나라는 독일이다."]
    questions = ["화가의 나라는?", "작곡가는?", "노르웨이의 수도는?"] * 2
    support = Support.of([*texts, "작곡가는 많다.", "귄트는 노래이다."], questions)
    question, answer = "귄트를 쓴 사람의 모국은?", "귄트 작곡가의 나라는 노르웨이입니다."
    assert support.claim(question, answer) <= support.common
    assert source(support, question, ("귄트를 쓴 사람의 모국은 노르웨이이다.",), answer) == 1
    assert source(support, question, ("귄트를 쓴 사람의 모국은 독일이다.",), answer) is None


def test_parts_of_sentences() -> None:
    text = "가는 나이고 다는 라이다. 마: 바, 사. 최고 기온이다."
    assert list(clauses(text)) == ["가는 나이", "다는 라이다.", "마: 바", "사.", "최고 기온이다."]
    asked = "Q. 가는 무엇인가요? A. 나이고 다이다. 라이다. 마를 알려 주세요. - 바."
    question = "Q. 가는 무엇인가요?"
    assert list(clauses(asked)) == [
        question,
        f"{question} A. 나이",
        f"{question} 다이다.",
        "라이다.",
        "마를 알려 주세요.",
        "마를 알려 주세요. - 바.",
    ]


def test_passages_about_something_else_state_no_answer() -> None:
    assert about(SUPPORT, QUESTION, SHOWN) == list(SHOWN[1:])
    assert about(SUPPORT, "zzz?", SHOWN) == []
    assert about(SUPPORT, QUESTION, ()) == []


def test_what_is_wanted_counts_though_a_long_name_outweighs_it() -> None:
    name = "푸른 바다 노인의 항해"
    texts = [f"{name}의 갈래는 소설이다.", f"{name}를 쓴 사람은 스탕달이다."]
    texts += ["봄의 갈래는 시이다.", "겨울의 갈래는 시이다."]
    questions = ["봄의 갈래는?", "겨울의 갈래는?", "봄을 쓴 사람은?", "겨울을 쓴 사람은?"]
    support = Support.of([*texts, *["다른 글이다."] * 30], questions)
    question = f"{name}의 갈래는 무엇인가요?"
    assert about(support, question, texts) == texts[:1]
    assert source(support, question, texts, f"{name}의 갈래는 소설입니다.") == 1
    assert source(support, question, texts, f"{name}의 갈래는 스탕달입니다.") is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("사람의 뇌 개수는 한 개입니다. 뇌는 조절을 맡습니다.", {"한/M"}),
        ("뇌의 개수는 많습니다. 한 개입니다.", {"많/V"}),
        ("한 개입니다.", {"한/M"}),
        ("네, 좋은 질문입니다. 뇌는 한 개입니다.", {"한/M"}),
        ("뇌의 수는 몇 개인가요?", set()),
        ("", set()),
    ],
)
def test_an_answer_asserts_what_it_says_of_its_topic(answer: str, words: set[str]) -> None:
    assert asserted("사람이 가진 뇌의 수는 몇 개인가요?", answer) == words
