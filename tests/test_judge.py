"""Stage judge: whose questions it trains on. The whole stage runs in test_pipeline."""

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
