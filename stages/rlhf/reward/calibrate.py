"""Calibration of a trained reward model on validation: its length curve and its temperature.

The curve is cross-validated: one is fitted on each half of the questions and corrects the other
half, so that every question counts; then one is fitted on all of them.
"""

import random
from collections.abc import Sequence

from stages.rlhf.measure.calibration import fit_temperature
from stages.rlhf.measure.length_bias import correct, fit_length_curve, worth_applying
from stages.rlhf.measure.ranked_groups import Group, margins_of
from stages.rlhf.reward.model import Calibration


def calibrate(groups: Sequence[Group], tolerance: float | None, seed: int) -> Calibration:
    """Fit the curve and the temperatures on validation groups.

    tolerance: largest drop in pairwise accuracy at which the curve is applied; None: never applied.
    With one question there is no other half, and the curve is not applied. Raises ValueError if no
    two answers to a question differ in rank.
    """
    if not len(margins_of(groups)):
        raise ValueError("validation groups: no two answers of one question differ in rank")
    curve = fit_length_curve(groups, "tokens")
    worth, raw, corrected = _cross_validated(groups, tolerance, seed)
    return Calibration(
        curve,
        worth,
        raw,
        corrected,
        fit_temperature(margins_of(groups)),
        fit_temperature(margins_of(correct(groups, curve))),
    )


def _cross_validated(
    groups: Sequence[Group], tolerance: float | None, seed: int
) -> tuple[bool, float | None, float | None]:
    """Whether curves are worth applying: each is fitted on one half and corrects the other."""
    if len(groups) < 2:
        return False, None, None
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    halves = [[groups[i] for i in sorted(order[start::2])] for start in (0, 1)]
    corrected = [
        group
        for fitted, tried in (halves, reversed(halves))
        for group in correct(tried, fit_length_curve(fitted, "tokens"))
    ]
    worth, before, after = worth_applying(groups, corrected, tolerance or 0.0)
    return worth and tolerance is not None, before, after
