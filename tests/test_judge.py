"""Stage judge: whose questions it trains on. The whole stage runs in test_pipeline."""

import pytest

from stages import judge
from stages.rlhf.records import RmRow

ROWS = [
    RmRow(id=str(i), question=f"질문 {i}", answers=("가", "나"), ranks=(1.0, 2.0))
    for i in range(20)
]


def test_every_question_is_in_one_of_the_two_parts() -> None:
    told, held = judge.split(ROWS, 0.25, 3)
    assert (len(told), len(held)) == (15, 5)
    assert sorted(told + held, key=ROWS.index) == ROWS
    assert (told, held) == judge.split(ROWS, 0.25, 3) != judge.split(ROWS, 0.25, 4)
    assert held == sorted(held, key=ROWS.index)


@pytest.mark.parametrize(
    ("rows", "share", "held"),
    [
        (2, 0.1, 1),
        (4, 0.1, 1),
        (5, 0.1, 1),
        (6, 0.1, 1),
        (20, 0.01, 1),
        (20, 0.99, 19),
        (2, 0.9, 1),
    ],
)
def test_each_part_has_a_question_where_there_are_two(rows: int, share: float, held: int) -> None:
    train, validation = judge.split(ROWS[:rows], share, 0)
    assert (len(train), len(validation)) == (rows - held, held)


def test_groups_on_one_question_go_together() -> None:
    rows = [row.model_copy(update={"question": f"질문 {n // 4}?"}) for n, row in enumerate(ROWS)]
    for seed in range(8):
        train, validation = judge.split(rows, 0.4, seed)
        assert (len(train), len(validation)) == (12, 8)
        assert not {row.question for row in train} & {row.question for row in validation}
    train, validation = judge.split(rows, 0.4, 0, at_most=1)  # a question, of which there are four
    assert (len(train), len(validation)) == (16, 4)
    assert judge.split(rows, 0.4, 0, at_most=2) == judge.split(rows, 0.4, 0, at_most=9)
    alike = [row.model_copy(update={"question": "같은 질문?"}) for row in ROWS[:4]]
    assert [len(part) for part in judge.split(alike, 0.5, 0)] == [2, 2]
