"""Stage judge: whose questions it trains on. The whole stage runs in test_pipeline."""

from pathlib import Path
from typing import Any

import pytest

from stages import judge
from stages.rlhf.chat import Codec
from stages.rlhf.records import RmRow, write_jsonl
from stages.rlhf.runs.process_group import SINGLE_PROCESS
from tests.model_fixtures import micro_params, save_base
from tests.tokenizer_fixtures import tiny_tokenizer

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


def test_the_cap_on_validation_rows_is_the_judges_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        """The groups that choose the epoch."""

    def watched(model: Any, groups: Any, held: list[Any], *given: Any, **named: Any) -> Any:
        raise Seen(len(groups), len(held))

    monkeypatch.setattr(judge, "train", watched)
    paths = {"base": save_base(tmp_path / "base"), "rows": tmp_path}
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    params = micro_params().model_copy(update={"validation_rows": 1})
    assert len(judge.split(ROWS, params.judge.validation_share, 0)[1]) == 2
    with pytest.raises(Seen) as found:
        judge.trained(params, paths, Codec(tiny_tokenizer()), tmp_path, SINGLE_PROCESS)
    assert found.value.args == (19, 1)
