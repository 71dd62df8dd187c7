"""Messages with passages; citations that are put on and taken off; a refusal among other words."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.rlhf.chat import (
    EVIDENCE,
    REFUSAL,
    cite,
    cited,
    declines,
    fitting,
    message,
    without_citations,
)
from stages.rlhf.records import PromptRow
from tests.retrieval_fixtures import blanks

QUESTION = "일본의 수도는?"
NUMBERS = st.integers(0, 999)
UNBRACKETED = st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"])).map(
    str.strip
)
PASSAGES = st.lists(st.text("가나 ", min_size=1, max_size=12), max_size=5)


def test_a_message_without_passages_is_the_question() -> None:
    assert message(QUESTION, []) == QUESTION
    assert PromptRow(id="1", question=QUESTION).message == QUESTION
    assert PromptRow(id="1", question=QUESTION, passages=()).message == QUESTION


def test_a_message_has_a_line_for_each_passage() -> None:
    passages = ("도쿄는\n\n크다.\r\n[2] 가짜", " \t오사카도\u2028크다. ")
    expected = f"{QUESTION}\n{EVIDENCE}\n[1] 도쿄는 크다. [2] 가짜\n[2] 오사카도 크다."
    assert message(QUESTION, passages) == expected
    assert PromptRow(id="1", question=QUESTION, passages=passages).message == expected


@settings(deadline=None)
@given(UNBRACKETED, NUMBERS)
def test_a_citation_comes_off_as_it_was_put_on(answer: str, number: int) -> None:
    assert cited(answer) is None
    assert without_citations(answer) == answer
    assert cited(cite(answer, number)) == number
    assert without_citations(cite(answer, number)) == answer


@settings(deadline=None)
@given(UNBRACKETED, st.lists(NUMBERS, min_size=1, max_size=4))
def test_the_last_citation_counts_and_all_come_off(answer: str, numbers: list[int]) -> None:
    text = answer
    for number in numbers:
        text = cite(text, number)
    assert cited(text) == numbers[-1]
    assert without_citations(text) == answer


@pytest.mark.parametrize(
    ("answer", "number", "said"),
    [
        ("도쿄[1]입니다.", 1, "도쿄입니다."),
        ("도쿄입니다 [3]. 큽니다 [12].", 12, "도쿄입니다. 큽니다."),
        ("[2]", 2, ""),
        ("[1234] 도쿄", None, "[1234] 도쿄"),
        ("[가] [-1] [ 1 ] []", None, "[가] [-1] [ 1 ] []"),
        ("", None, ""),
    ],
)
def test_what_is_a_citation(answer: str, number: int | None, said: str) -> None:
    assert cited(answer) == number
    assert without_citations(answer) == said


def test_a_row_without_passages_keeps_what_looks_like_a_citation() -> None:
    assert PromptRow(id="1", question="?").spoken("a [1]") == "a [1]"
    assert PromptRow(id="1", question="?", passages=("글",)).spoken("a [1]") == "a"


@settings(deadline=None)
@given(PASSAGES, st.integers(1, 60), st.sampled_from([len, blanks]))
def test_as_many_fit_as_a_loop_finds(
    passages: list[str], room: int, tokens: Callable[[str], int]
) -> None:
    fit = 0
    while fit < len(passages):
        lines = [f"\n[{i + 1}] {text}" for i, text in enumerate(passages[: fit + 1])]
        if tokens(f"\n{EVIDENCE}") + sum(map(tokens, lines)) > room:
            break
        fit += 1
    assert fitting(passages, tokens, room) == fit


def test_the_first_too_long_one_ends_the_list() -> None:
    assert fitting(["가", "가 " * 50, "가"], blanks, 10) == 1
    assert fitting(["가"], blanks, 2) == 0
    assert fitting([], blanks, 1) == 0


def test_a_message_grows_by_no_more_than_the_room() -> None:
    passages = ["가나다", "라마바"]
    for room in range(1, 30):
        shown = passages[: fitting(passages, len, room)]
        assert len(message(QUESTION, shown)) - len(QUESTION) <= room


def test_a_refusal_is_found_among_other_words() -> None:
    assert declines(REFUSAL)
    assert declines(f"죄송합니다. {REFUSAL} 다른 것을 물어 주세요. [1]")
    assert not declines("근거에서 답을 찾을 수 있습니다. [1]")
    assert not declines("")
