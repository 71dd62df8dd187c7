"""Length bias of a reward model: fitting a length curve after training, and subtracting it.

Model: score = question + rank + f(length) + noise, f by LOWESS (post-hoc reward calibration, Huang
et al. 2024, arXiv 2409.17407), fitted on validation by backfitting (Hastie and Tibshirani 1990;
Buja et al. 1989). Two effects are kept out of f that a plain LOWESS of score on length removes:

- the question: some questions call for longer answers and get different scores. f is identified
  only by differences between answers to the same question, but remains a function of the length
  itself, so it applies to a single answer of any length.
- the rank: if longer answers really are better, score should follow length. Given the human rank,
  length should carry no information; what it still predicts is the bias. Ranks are coarse, so some
  true quality remains in f: `worth_applying` measures what removing it costs.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from statsmodels.nonparametric.smoothers_lowess import lowess

from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, accuracy, check, margins_of
from stages.rlhf.records import LengthUnit

KNOTS = 41
ITERATIONS = 100
TOLERANCE = 1e-5  # largest change between rounds of backfitting, in sd of the scores


def fit_length_curve(
    groups: Sequence[Group], unit: LengthUnit = "characters", frac: float = 0.4
) -> LengthCurve:
    """Fit f; `frac` is the share of the answers in each local regression.

    Alternates between question, rank and the linear part of f (exact least squares) and the
    nonlinear part (LOWESS of the partial residuals) until convergence. Only the linear part is
    confounded with the questions' lengths; solving for it exactly avoids slow convergence. LOWESS
    without robustness iterations is a linear smoother, for which backfitting converges. Questions
    with one answer carry no information; if lengths never differ within a question, f is 0.
    Raises ValueError without groups, for scores that are not finite and for unknown lengths.
    """
    check(groups)
    if not groups:
        raise ValueError("no groups to fit a length curve on: expected at least one")
    question = np.repeat(np.arange(len(groups)), [len(g.scores) for g in groups])
    scores = np.array([s for g in groups for s in g.scores], dtype=float)
    lengths = np.array([n for g in groups for n in g.sizes(unit)], dtype=float)
    ranks = np.array([r for g in groups for r in g.ranks], dtype=float)

    def within(values: np.ndarray) -> np.ndarray:
        means = np.bincount(question, values) / np.bincount(question)
        return values - means[question]

    has_siblings = np.bincount(question)[question] > 1
    if not has_siblings.any() or np.allclose(within(lengths), 0):
        return LengthCurve((float(lengths[0]),), (0.0,), unit)
    length_sd = float(np.std(within(lengths)))
    columns = [
        (lengths - lengths.mean()) / length_sd,
        *((ranks == r) * 1.0 for r in np.unique(ranks)),
    ]
    design = np.stack([within(column) for column in columns], axis=1)
    x = lengths[has_siblings]
    knots = np.unique(np.quantile(x, np.linspace(0, 1, KNOTS), method="nearest"))
    score_sd = float(scores.std())
    nonlinear = np.zeros_like(scores)
    for _ in range(ITERATIONS):
        target = within(scores - nonlinear)
        coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
        partial = nonlinear + target - design @ coefficients
        smooth = _smooth(partial[has_siblings], x, knots, frac)
        smooth -= np.interp(x, knots, smooth).mean()
        previous, nonlinear = nonlinear, np.interp(lengths, knots, smooth)
        if np.abs(nonlinear - previous).max() <= TOLERANCE * score_sd:
            break
    offsets = smooth + coefficients[0] * knots / length_sd
    offsets -= np.interp(x, knots, offsets).mean()
    return LengthCurve(tuple(knots.tolist()), tuple(offsets.tolist()), unit)


def _smooth(y: np.ndarray, x: np.ndarray, knots: np.ndarray, frac: float) -> np.ndarray:
    """LOWESS of y (N,) on x (N,), evaluated at the knots, a subset of x."""
    with np.errstate(invalid="ignore"):
        smooth = lowess(y, x, frac=frac, it=0, xvals=knots)
    # NaN if a whole window has one length: use the mean at that length.
    return np.array(
        [
            y[x == knot].mean() if np.isnan(value) else value
            for knot, value in zip(knots, smooth, strict=True)
        ]
    )


def correct(groups: Sequence[Group], curve: LengthCurve) -> list[Group]:
    """The groups with score - f(length) as their scores."""
    return [
        replace(g, scores=(np.asarray(g.scores) - curve.at(g.sizes(curve.unit))).tolist())
        for g in groups
    ]


def worth_applying(
    groups: Sequence[Group], corrected: Sequence[Group], tolerance: float = 0.01
) -> tuple[bool, float | None, float | None]:
    """Whether pairwise accuracy drops by at most `tolerance`; accuracy before and after.

    Correct groups with a curve that was not fitted on them. Without pairs: False, None, None.
    """
    before, after = (accuracy(margins_of(some)) for some in (groups, corrected))
    if before is None or after is None:
        return False, None, None
    return before - after <= tolerance + 1e-12, before, after
