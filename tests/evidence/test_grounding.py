"""Answers that passages state, by hand."""

from collections.abc import Iterator

import pytest

from stages.rlhf.chat import REFUSAL
from stages.rlhf.evidence.grounding import checked, source, stated, unstated
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
        ([f"{RIGHT} [3]", RIGHT], f"{RIGHT} [3]"),
        ([REFUSAL, f"{WRONG} [2]", f"{RIGHT} [1]"], f"{RIGHT} [2]"),
        ([f"{WRONG} [2]", "파리입니다."], "파리입니다. [2]"),
        ([f"{WRONG} [2]", REFUSAL], REFUSAL),
        ([], REFUSAL),
    ],
)
def test_the_first_that_a_passage_states_is_given_with_its_number(
    answers: list[str], expected: str
) -> None:
    assert stated(SUPPORT, QUESTION, SHOWN, answers) == expected


def test_no_answer_is_sampled_once_one_is_found() -> None:
    def answers() -> Iterator[str]:
        yield WRONG
        yield RIGHT
        raise AssertionError

    assert stated(SUPPORT, QUESTION, SHOWN, answers()) == f"{RIGHT} [2]"


def test_of_each_row_what_is_stated() -> None:
    rows = [PromptRow(id=str(i), question=QUESTION, passages=SHOWN) for i in range(4)]
    first = [Response(text, i, True) for i, text in enumerate((RIGHT, WRONG, REFUSAL, WRONG))]
    indices = unstated(first, rows, SUPPORT)
    assert indices == [1, 2, 3]
    again = {1: [Response(RIGHT, 9, True)], 2: [Response(WRONG, 9, True)]}
    found = checked(first, again, rows, SUPPORT)
    assert [one.text for one in found] == [f"{RIGHT} [2]", f"{RIGHT} [2]", REFUSAL, REFUSAL]
    assert [one.tokens for one in found] == [0, 1, 2, 3]
