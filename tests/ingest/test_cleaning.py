"""One row at a time: what is cleaned, what is dropped, and for which reason."""

import re
import unicodedata
from typing import Any

import pytest

from stages.rlhf.chat import REFUSAL
from stages.rlhf.ingest.cleaning import (
    Answer,
    Clean,
    Cleaned,
    Dropped,
    Unusable,
    clean_item,
)
from stages.rlhf.ingest.sources.items import MISSING, Item
from tests.conftest import naming


def sft(question: Any = "수도는 어디?", answer: Any = "서울입니다.", **more: Any) -> Item:
    return Item("sft", "s1", {}, question, (answer,), **more)


def rm(answers: Any = ("가", "나", "다"), ranks: Any = (1, 2, 3), **more: Any) -> Item:
    return Item("rm", "r1", {}, "수도는 어디?", tuple(answers), tuple(ranks), **more)


def reason(item: Item) -> str:
    with pytest.raises(Unusable) as caught:
        clean_item(item)
    return caught.value.reason


def group(item: Item) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    found = clean_item(item)
    answers = [(a.text, a.rank) for a in found.row.answers]
    return answers, [(d.reason, d.answer.text) for d in found.dropped]


def test_clean_row() -> None:
    item = sft(
        unicodedata.normalize("NFD", "\ufeff수도는\n 어디?"),
        "\u200b서울\u00a0입니다.\n\n\n  네.",
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
    assert clean_item(item) == Cleaned(
        Clean(
            part="sft",
            id="s1",
            key="수도는어디",
            question="수도는 어디?",
            answers=(Answer("서울 입니다.\n\n  네.", 1),),
            labels=labels,
            side="test",
            pinned=True,
        )
    )


def side(**named: Any) -> tuple[str | None, bool]:
    row = clean_item(sft(**named)).row
    return row.side, row.pinned


def test_a_rows_own_split_wins() -> None:
    assert side() == (None, False)
    assert side(side="test") == ("test", False)
    assert side(side="test", split="validation") == ("validation", True)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((word, "validation") for word in ("dev", "val", "valid", "eval", "Validation", " DEV ")),
        *((word, "train") for word in ("train", "Training", "학습")),
        *((word, "test") for word in ("test", "TEST", unicodedata.normalize("NFD", "시험"))),
    ],
)
def test_words_for_a_split(word: str, split: str) -> None:
    assert side(split=word) == (split, True)
    assert side(split=None) == side(split="") == (None, False)


def test_an_unknown_split_is_named_with_those_that_are_known() -> None:
    with pytest.raises(Unusable) as caught:
        clean_item(sft(split="holdout"))
    detail = str(caught.value.detail)
    assert re.search(naming("'holdout'", "validation", "dev", "시험"), detail)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (sft(""), "empty_question"),
        (sft(" \u200b\n"), "empty_question"),
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
        (sft(question=True), "malformed"),
        (sft(question=37), "malformed"),
        (sft(question=float("nan")), "malformed"),
        (sft(answer=float("inf")), "malformed"),
        (sft(answer=["서울"]), "malformed"),
        (sft(answer=MISSING), "malformed"),
        (sft(answer={"contents": "x"}), "malformed"),
        (sft(split="tset"), "unknown_split"),
        (sft(split=3), "unknown_split"),
        (sft(split="judge_train"), "unknown_split"),
        (sft(fault="no key answer"), "malformed"),
        (Item("ppo", "p", "text"), "malformed"),
        (Item("ppo", "p", {}, ""), "empty_question"),
        (Item("ppo", "p", {}, "#@이름#은 누구?"), "placeholder"),
    ],
)
def test_reasons(item: Item, why: str) -> None:
    assert reason(item) == why


def test_labels_of_another_type_are_ignored_and_counted() -> None:
    found = clean_item(sft(category=["인문"], question_type=3, kind=False, must_contain={}))
    assert set(found.row.labels.values()) == {None}
    assert found.ignored == ("category", "question_type", "kind", "must_contain")
    assert clean_item(sft(kind="", category=None)).ignored == ()


@pytest.mark.parametrize(
    ("number", "text"), [(2, "2"), (-0.5, "-0.5"), (1947.0, "1947.0"), (10**30, "1" + "0" * 30)]
)
def test_a_number_is_its_text(number: float, text: str) -> None:
    found = clean_item(sft(answer=number, must_contain=number)).row
    assert found.answers[0].text == text
    assert found.labels["must_contain"] == text
    assert group(rm((number, "나", "다")))[0][0] == (text, 1)


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


def test_ranks_that_begin_at_zero_are_not_taken_for_scores() -> None:
    with pytest.raises(Unusable) as caught:
        clean_item(rm(ranks=(2, "0", 1)))
    assert re.search(naming("begin at 0", "1 (best) to 3"), str(caught.value.detail))
    assert "scores" not in str(caught.value.detail)


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


def test_a_refusal_of_a_bot_with_passages_is_no_answer_without_them() -> None:
    """A vote that it won would teach refusing where nothing was shown."""
    assert group(rm((REFUSAL, "서울", "부산"), (1, 2, 3))) == (
        [("서울", 1), ("부산", 2)],
        [("declines", REFUSAL)],
    )
    assert reason(rm(("서울", f"죄송합니다. {REFUSAL}"), (2, 1))) == "too_few_answers"
    assert reason(sft(answer=REFUSAL)) == "declines"


def test_too_few_answers() -> None:
    assert reason(rm(("가", "", ""), (1, 2, 3))) == "too_few_answers"
    assert reason(rm(("가",), (1,))) == "too_few_answers"
    assert reason(rm(("가", "가\u200b", " 가"), (1, 2, 3))) == "too_few_answers"
    assert reason(rm(("가", "나", ""), (1, 1, 2))) == "all_tied"


def test_of_identical_answers_the_best_ranked_stays() -> None:
    item = rm(("가", "나", "가 ", "다"), (3, 2, 1, 4), defects=["a", "b", "c", ""])
    found = clean_item(item)
    assert found.row.answers == (Answer("나", 2, "b"), Answer("가", 1, "c"), Answer("다", 3, ""))
    assert found.dropped == (Dropped("duplicate_answer", Answer("가", 3, "a")),)


@pytest.mark.parametrize(
    "item",
    [
        rm((), ()),
        rm(("가", MISSING, "다")),
        rm(("가", {"text": "나"}, "다")),
    ],
)
def test_malformed_groups(item: Item) -> None:
    assert reason(item) == "malformed"


@pytest.mark.parametrize("defects", [["a", "b"], "abc", "none", ["a", "b", 3], {"a": 1}, 0])
def test_defects_of_another_shape_are_ignored(defects: Any) -> None:
    found = clean_item(rm(defects=defects))
    assert [answer.defect for answer in found.row.answers] == [None] * 3
    assert found.ignored == ("defects",)


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ((1, 2, 3), [3, 2, 1]),
        ((7, 5, 9), [2, 3, 1]),
        ((0.2, 0.9, 0.5), [3, 1, 2]),
        (("-1", "3.5", "0"), [3, 1, 2]),
        ((5, 5, 1), [1, 1, 2]),
    ],
)
def test_the_highest_score_is_best(scores: Any, ranks: list[float]) -> None:
    assert [rank for _, rank in group(rm(ranks=scores, scored=True))[0]] == ranks


@pytest.mark.parametrize("scores", [(1, 2), (1, 2, None), (1, 2, "good"), (1, 2, float("nan"))])
def test_bad_scores(scores: Any) -> None:
    assert reason(rm(ranks=scores, scored=True)) == "bad_rank"
    assert reason(rm(ranks=(4, 4, 4), scored=True)) == "all_tied"


def test_scores_under_ranks_are_named() -> None:
    with pytest.raises(Unusable) as caught:
        clean_item(rm(ranks=(7, 5, 9)))
    assert caught.value.detail is not None
    assert re.search(naming("[7, 5, 9]", "1 (best) to 3", "scores"), caught.value.detail)
