"""Answers made worse on purpose: each is what its name says, and none slips in as a good one."""

import random

import pytest

from stages.rlhf.korean import sentence_ends
from stages.rlhf.measure.violations import copies, loops
from stages.rlhf.records import RmRow
from stages.rlhf.reward.hard_negatives import (
    LAST,
    MAKERS,
    alike,
    counts,
    cut,
    filler,
    for_training,
    held_out,
    loop,
    make,
)

ANSWER = "한라산의 높이는 1947m입니다. 한라산은 제주도에 있습니다."
OTHER = "훈민정음은 세종대왕이 만들었습니다. 1443년의 일입니다."
RNGS = [random.Random(seed) for seed in range(40)]


def row(name: str, question: str, *answers: str) -> RmRow:
    return RmRow(
        id=name,
        question=question,
        answers=answers,
        ranks=tuple(float(len(answers) - i) for i in range(len(answers))),  # the last is the best
    )


ROWS = [
    row("a", "한라산의 높이는 얼마인가요?", "모릅니다.", ANSWER),
    row("b", "훈민정음은 누가 만들었나요?", "이순신입니다.", "몰라요", OTHER),
    row("c", "김치의 주재료를 알려 주세요.", "무엇일까요?", "배추로 담그는 음식이에요."),
]


def anything(text: str) -> bool:
    return True


def test_a_loop_says_something_three_times_in_a_row() -> None:
    for rng in RNGS:
        found = loop(ANSWER, rng)
        assert found is not None
        assert loops(found), found
        assert ANSWER.startswith(found.split()[0])
    assert loop("", RNGS[0]) is None


def test_a_cut_ends_inside_a_sentence() -> None:
    found = {cut(ANSWER, rng) for rng in RNGS}
    assert len(found) > 5
    for text in found:
        assert text is not None
        assert ANSWER.startswith(text)
        assert len(text) < len(ANSWER) - 1
        assert len(text) not in sentence_ends(text)
    assert cut("네.", RNGS[0]) is None


def test_filler_adds_a_sentence_of_another_answer() -> None:
    found = {filler(ANSWER, OTHER, rng) for rng in RNGS}
    assert found == {
        f"{ANSWER} 훈민정음은 세종대왕이 만들었습니다.",
        f"{ANSWER} 1443년의 일입니다.",
    }
    assert filler(f"{ANSWER} {OTHER}", OTHER, RNGS[0]) is None
    assert filler(ANSWER, "", RNGS[0]) is None


def test_a_hard_negative_keeps_the_lines_of_its_original() -> None:
    answer = "합:\n\n- 하나\n    - 둘"
    found = {loop(answer, rng) for rng in RNGS}
    assert f"{answer} 둘 둘 둘" in found
    assert all(text and text.startswith(("합: 합:", "합:\n\n-")) for text in found)
    assert filler("```\nx\n```", "네.", RNGS[0]) == "```\nx\n```\n네."


def test_alike_counts_character_pairs_in_common() -> None:
    assert alike("가나다", "가나라마") == 0.5
    assert alike("가나다", "가나다") == 1
    assert alike("가나다", "라마바") == alike("", "가나다") == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_made_of_the_best_answer(kind: str) -> None:
    found = make(ROWS[0], kind, ROWS, anything, random.Random(0))
    assert found is not None
    assert (found.kind, found.original) == (kind, 1)
    if kind in ("loop", "cut", "filler"):
        assert found.text.startswith(ANSWER[:3])
    if kind == "echo":
        assert copies(found.text, ROWS[0].question, ANSWER)
    if kind == "other":
        assert found.text in (OTHER, "배추로 담그는 음식이에요.")
    assert (found.text == "") == (kind == "empty")


def test_an_answer_about_the_same_thing_is_no_other_questions_answer() -> None:
    twin = row("d", "한라산의 높이를 알려 주세요.", "몰라요", "한라산의 높이는 1947m입니다.")
    assert make(ROWS[0], "other", [ROWS[0], twin], anything, random.Random(0)) is None


def test_what_does_not_fit_or_is_there_already_is_not_made() -> None:
    assert make(ROWS[0], "filler", ROWS, lambda text: len(text) < 30, random.Random(0)) is None
    echo = row("e", "김치는?", "김치는", "배추김치")
    assert make(echo, "echo", ROWS, anything, random.Random(0)) is None


def many(count: int, answers: int = 2) -> list[RmRow]:
    """Rows about ten things whose names share no syllable."""
    subjects = ["".join(chr(0xAC00 + 997 * i + k) for k in range(20)) for i in range(10)]
    return [
        row(
            str(i),
            f"{subjects[i % 10]} {i}?",
            *(f"{subjects[i % 10]} {i} {k}다." for k in range(answers)),
        )
        for i in range(count)
    ]


def test_about_that_share_of_the_rows_gets_one_of_all_kinds() -> None:
    rows = many(400)
    made = for_training(rows, 0.25, anything, "seed")
    assert 70 < sum(one is not None for one in made) < 130
    assert all(counts(made)[kind] >= 5 for kind in MAKERS), counts(made)
    assert sum(counts(made).values()) == sum(one is not None for one in made)
    assert for_training(rows, 0.0, anything, "seed") == [None] * 400
    assert all(for_training(rows, 1.0, anything, "seed"))


def test_draws_depend_on_seed_and_row_alone() -> None:
    rows = many(60)
    made = for_training(rows, 0.5, anything, "seed")
    assert for_training(rows, 0.5, anything, "seed") == made
    assert for_training(rows, 0.5, anything, "other") != made
    kept = [one is not None for one in made]
    turned = for_training(rows[::-1], 0.5, anything, "seed")[::-1]
    assert [one is not None for one in turned] == kept


@pytest.mark.parametrize("answers", [2, 9, 20])
def test_a_group_of_any_size_gets_one(answers: int) -> None:
    assert all(for_training(many(5, answers), 1.0, anything, "seed"))


def test_where_a_kind_cannot_be_made_the_next_one_is() -> None:
    made = for_training(many(40), 1.0, lambda text: text == "", "seed")
    assert counts(made) == {**dict.fromkeys(MAKERS, 0), "empty": 40}
    assert for_training(many(4), 1.0, lambda text: False, "seed") == [None] * 4


def test_held_out_has_one_of_each_kind_per_row_where_it_can_be_made() -> None:
    found = held_out(ROWS, anything, "seed")
    assert list(found) == list(MAKERS)
    assert {len(twins) for twins in found.values()} == {3}
    for kind, twins in found.items():
        assert [index for index, _ in twins] == [0, 1, 2]
        for own, (_, twin) in zip(ROWS, twins, strict=True):
            assert twin.kind == kind
            assert twin.original == own.best
            assert twin.text not in own.answers
    assert held_out(ROWS, lambda text: text != "", "seed")["empty"] == []


def test_what_is_ranked_last_does_not_hold_the_best_answer() -> None:
    for kind in LAST:
        for own in ROWS:
            found = make(own, kind, ROWS, anything, random.Random(1))
            assert found is not None
            assert own.answers[own.best] not in found.text
