"""One row at a time: what is cleaned, what is dropped, and for which reason."""

import unicodedata
from typing import Any

import pytest

from stages.rlhf.ingest.cleaning import Answer, Clean, Dropped, Unusable, clean_item
from stages.rlhf.ingest.sources.items import MISSING, Item


def sft(question: Any = "수도는 어디?", answer: Any = "서울입니다.", **more: Any) -> Item:
    return Item("sft", "s1", {}, question, (answer,), **more)


def rm(answers: Any = ("가", "나", "다"), ranks: Any = (1, 2, 3), **more: Any) -> Item:
    return Item("rm", "r1", {}, "수도는 어디?", tuple(answers), tuple(ranks), **more)


def reason(item: Item) -> str:
    with pytest.raises(Unusable) as caught:
        clean_item(item)
    return caught.value.reason


def group(item: Item) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    row, dropped = clean_item(item)
    return [(a.text, a.rank) for a in row.answers], [(d.reason, d.answer.text) for d in dropped]


def test_clean_row() -> None:
    item = sft(
        unicodedata.normalize("NFD", "\ufeff수도는\n 어디?</s>"),
        "\u200b서울\u00a0입니다.<|endoftext|>\n\n\n네.",
        category=" 인문 ",
        question_type="생성",
        kind="unseen_ending",
        must_contain=unicodedata.normalize("NFD", "서울"),
        split="test",
    )
    labels = {
        "category": "인문",
        "question_type": "생성",
        "kind": "unseen_ending",
        "must_contain": "서울",
    }
    assert clean_item(item) == (
        Clean(
            part="sft",
            id="s1",
            key="수도는어디",
            question="수도는 어디?",
            answers=(Answer("서울 입니다.\n네.", 1),),
            labels=labels,
            side="test",
            pinned=True,
        ),
        [],
    )


def test_validation_part_is_the_test_split() -> None:
    row, _ = clean_item(sft(validation=True))
    assert (row.side, row.pinned) == ("test", False)
    row, _ = clean_item(sft(validation=True, split="validation"))
    assert (row.side, row.pinned) == ("validation", True)
    assert clean_item(sft())[0].side is None


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (sft(""), "empty_question"),
        (sft(" \u200b</s>"), "empty_question"),
        (sft("?!"), "empty_question"),
        (sft(None), "empty_question"),
        (sft(answer=""), "empty_answer"),
        (sft(answer="\ufeff \u3164"), "empty_answer"),
        (sft(answer="..."), "empty_answer"),
        (sft(answer=None), "empty_answer"),
        (sft(answer="수도는  어디"), "answer_equals_question"),
        (sft(question="<NAME>은 누구?"), "placeholder"),
        (sft(answer="<NAME>입니다."), "placeholder"),
        (sft(question=MISSING), "malformed"),
        (sft(question=3), "malformed"),
        (sft(answer=MISSING), "malformed"),
        (sft(answer={"contents": "x"}), "malformed"),
        (sft(split="dev"), "malformed"),
        (sft(split=3), "malformed"),
        (sft(split="judge_train"), "malformed"),
        (sft(kind=3), "malformed"),
        (Item("ppo", "p", "text"), "malformed"),
        (Item("ppo", "p", {}, ""), "empty_question"),
        (Item("ppo", "p", {}, "#@이름#은 누구?"), "placeholder"),
    ],
)
def test_reasons(item: Item, why: str) -> None:
    assert reason(item) == why


def test_dirt_in_the_category_is_not_the_rows_fault() -> None:
    assert clean_item(sft(category=["인문"], question_type=3))[0].labels["category"] is None


@pytest.mark.parametrize(
    "ranks",
    [(1, 2, 3), (1.0, 2.0, 3.0), ("1", " 2", "3.0"), (1, "2", 3.0)],
)
def test_ranks_as_numbers_and_texts(ranks: Any) -> None:
    assert group(rm(ranks=ranks)) == ([("가", 1), ("나", 2), ("다", 3)], [])


@pytest.mark.parametrize(
    "ranks",
    [
        (1, 2),
        (1, 2, None),
        (1, 2, MISSING),
        (1, 2, "best"),
        (1, 2, ""),
        (0, 1, 2),
        (1, 2, 4),
        (1, 2, float("nan")),
        (1, 2, "inf"),
        (1, 2, True),
        (1, 2, [3]),
        (1, 2, 10**400),
    ],
)
def test_bad_ranks(ranks: Any) -> None:
    assert reason(rm(ranks=ranks)) == "bad_rank"


@pytest.mark.parametrize(("ranking", "best"), [((1, 2, 0), "다"), ((2, 0, 1), "나")])
def test_ranks_from_zero(ranking: Any, best: str) -> None:
    answers, _ = group(rm(ranks=ranking, first_rank=0))
    assert {rank: text for text, rank in answers}[1] == best
    assert reason(rm(ranks=(1, 2, 3), first_rank=0)) == "bad_rank"


def test_ties_stay() -> None:
    assert group(rm("가나다라", (1, 2, 2, 4)))[0] == [("가", 1), ("나", 2), ("다", 2), ("라", 3)]
    assert reason(rm(ranks=(2, 2, 2))) == "all_tied"


def test_flawed_answers_leave_the_group() -> None:
    item = rm(("가", "", "<NAME>", "수도는 어디", "나"), (2, 1, 3, 4, 5))
    assert group(item) == (
        [("가", 1), ("나", 2)],
        [
            ("empty_answer", ""),
            ("placeholder", "<NAME>"),
            ("answer_equals_question", "수도는 어디"),
        ],
    )


def test_too_few_answers() -> None:
    assert reason(rm(("가", "", ""), (1, 2, 3))) == "too_few_answers"
    assert reason(rm(("가",), (1,))) == "too_few_answers"
    assert reason(rm(("가", "가\u200b", " 가"), (1, 2, 3))) == "too_few_answers"
    assert reason(rm(("가", "나", ""), (1, 1, 2))) == "all_tied"


def test_of_identical_answers_the_best_ranked_stays() -> None:
    item = rm(("가", "나", "가 ", "다"), (3, 2, 1, 4), defects=["a", "b", "c", ""])
    row, dropped = clean_item(item)
    assert row.answers == (Answer("나", 2, "b"), Answer("가", 1, "c"), Answer("다", 3, ""))
    assert dropped == [Dropped("duplicate_answer", Answer("가", 3, "a"))]


@pytest.mark.parametrize(
    "item",
    [
        rm((), ()),
        rm(("가", MISSING, "다")),
        rm(("가", 3, "다")),
        rm(defects=["a", "b"]),
        rm(defects="abc"),
        rm(defects=["a", "b", 3]),
    ],
)
def test_malformed_groups(item: Item) -> None:
    assert reason(item) == "malformed"
