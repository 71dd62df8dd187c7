"""Stage rm: its knobs."""

from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.config.whole import load_params
from tests.conftest import write_params


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rm.margin": 0.1}, r"rm: margin \(0.1\) is of pairs, and loss plackett_luce has none"),
        ({"rm.label_smoothing": 0.1}, r"label_smoothing \(0.1\) is of pairs"),
        ({"rm.label_smoothing": 0.5, "rm.loss": "bradley_terry"}, "label_smoothing = 0.5: .* 0.5"),
        ({"rm.members": 0}, "rm.members = 0: .* equal to 1"),
        ({"rm.members": 1}, r"ppo.uncertainty_coef \(0.1\) weighs the variance .* 1 member"),
        ({"rm.hard_negatives": 1.5}, "rm.hard_negatives = 1.5: .* equal to 1"),
        ({"rm.odin_coef": -0.1}, "rm.odin_coef = -0.1: .* equal to 0"),
        ({"ppo.uncertainty_coef": -1}, "ppo.uncertainty_coef = -1: .* equal to 0"),
    ],
)
def test_knobs_out_of_bounds_or_without_effect_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_params(write_params(tmp_path, **changed))


def test_knobs_of_pairs_go_with_their_loss(tmp_path: Path) -> None:
    changed = {"rm.loss": "bradley_terry", "rm.margin": 0.2, "rm.label_smoothing": 0.1}
    alone = {"rm.members": 1, "ppo.uncertainty_coef": 0}
    assert load_params(write_params(tmp_path, **changed, **alone)).rm.margin == 0.2
