"""Stage rm: its knobs."""

from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.config.whole import load_params
from tests.conftest import naming, write_params


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"rm.margin": 0.1}, ["margin", 0.1, "plackett_luce", "bradley_terry"]),
        ({"rm.label_smoothing": 0.1}, ["label_smoothing", 0.1, "plackett_luce"]),
        ({"rm.label_smoothing": 0.5, "rm.loss": "bradley_terry"}, ["rm.label_smoothing", 0.5]),
        ({"rm.members": 0}, ["rm.members", 0, 1]),
        ({"rm.members": 1}, ["ppo.uncertainty_coef", 0.1, "rm.members", 1]),
        ({"rm.hard_negatives": 1.5}, ["rm.hard_negatives", 1.5, 1]),
        ({"rm.odin_coef": -0.1}, ["rm.odin_coef", -0.1, 0]),
        ({"ppo.uncertainty_coef": -1}, ["ppo.uncertainty_coef", -1, 0]),
    ],
)
def test_knobs_out_of_bounds_or_without_effect_are_refused(
    tmp_path: Path, changed: dict[str, Any], facts: list[object]
) -> None:
    params = write_params(tmp_path, **changed)
    with pytest.raises(ValueError, match=naming(params, *facts)):
        load_params(params)


def test_knobs_of_pairs_go_with_their_loss(tmp_path: Path) -> None:
    changed = {"rm.loss": "bradley_terry", "rm.margin": 0.2, "rm.label_smoothing": 0.1}
    alone = {"rm.members": 1, "ppo.uncertainty_coef": 0}
    assert load_params(write_params(tmp_path, **changed, **alone)).rm.margin == 0.2
