"""The headline is chosen from all metrics by address."""

import pytest

from stages.rlhf.records import headlines

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
