"""The headline is chosen from all metrics by address; rows are drawn by a seed."""

import pytest

from stages.rlhf.records import PromptRow, headlines, subset

METRICS = {
    "loss": 0.5,
    "none": None,
    "by_kind": {"one": {"accuracy": 1, "ece": 2}, "two": {"accuracy": 3}, "note": "none"},
    "validation": {"best": {"chrf": 4, "exact": 5, "length": 6}, "sft": {"chrf": 7}},
}


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (["loss", "lost", "lost.key", "loss.key"], {"loss": 0.5}),
        (["none"], {"none": None}),
        (["by_kind.*.accuracy"], {"by_kind": {"one": {"accuracy": 1}, "two": {"accuracy": 3}}}),
        (["validation.sft"], {"validation": {"sft": {"chrf": 7}}}),
        (
            ["validation.best.chrf", "loss", "validation.best.exact", "validation.sft.chrf"],
            {"validation": {"best": {"chrf": 4, "exact": 5}, "sft": {"chrf": 7}}, "loss": 0.5},
        ),
    ],
)
def test_headlines(addresses: list[str], found: dict[str, object]) -> None:
    assert headlines(METRICS, addresses) == found


@pytest.mark.parametrize("at_most", [None, 7, 8])
def test_no_more_rows_than_there_are_can_be_drawn(at_most: int | None) -> None:
    rows = [PromptRow(id=str(i), question="가?") for i in range(7)]
    assert subset(rows, at_most, 0) == rows


def test_drawn_rows_keep_their_order_and_depend_on_the_seed() -> None:
    rows = [PromptRow(id=f"{i:03}", question="가?") for i in range(300)]
    found = [subset(rows, 50, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for part in found:
        ids = [row.id for row in part]
        assert len(set(ids)) == 50
        assert ids == sorted(ids)
    assert min(int(row.id) for row in found[0]) < 50 < 250 < max(int(row.id) for row in found[0])
