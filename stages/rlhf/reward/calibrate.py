"""What validation says of a trained reward model: its length curve and its temperature.

The curve is tried where it was not fitted: fitted on one half of the questions, tried on the other,
and, whatever came out, fitted again on all of them.
"""

import random
from collections.abc import Sequence

from stages.rlhf.measure.calibration import fit_temperature
from stages.rlhf.measure.length_bias import correct, fit_length_curve, worth_applying
from stages.rlhf.measure.ranked_groups import Group, margins_of
from stages.rlhf.reward.model import Calibration


def calibrate(groups: Sequence[Group], tolerance: float | None, seed: int) -> Calibration:
    """Fit curve and temperatures to validation's groups.

    tolerance: how far the curve may lower pairwise accuracy and still be applied; null: never.
    With one question there is no other half, and the curve is not applied. Raises ValueError where
    no two answers of one question differ in rank.
    """
    if not len(margins_of(groups)):
        raise ValueError("validation groups: no two answers of one question differ in rank")
    curve = fit_length_curve(groups, "tokens")
    worth, raw, corrected = _tried(groups, tolerance, seed)
    return Calibration(
        curve,
        worth,
        raw,
        corrected,
        fit_temperature(margins_of(groups)),
        fit_temperature(margins_of(correct(groups, curve))),
    )


def _tried(
    groups: Sequence[Group], tolerance: float | None, seed: int
) -> tuple[bool, float | None, float | None]:
    """Whether a curve of one half is worth applying, by the other half's accuracy with it."""
    if len(groups) < 2:
        return False, None, None
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    fitted, tried = ([groups[i] for i in sorted(order[start::2])] for start in (0, 1))
    curve = fit_length_curve(fitted, "tokens")
    worth, raw, corrected = worth_applying(tried, curve, tolerance or 0.0)
    return worth and tolerance is not None, raw, corrected
