"""The part of a score that is due to length alone: a curve fitted after training, and its removal.

Model: score = question + rank + f(length) + noise, f by LOWESS (post-hoc reward calibration, Huang
et al. 2024, arXiv 2409.17407), fitted on validation by backfitting (Hastie and Tibshirani 1990;
Buja et al. 1989). Two things are kept out of f, which a plain LOWESS of score on length removes:

- the question: some ask for longer answers and get other scores; f is told by the differences
  between answers of one question alone, yet stays a function of the length itself, so that it can
  be applied to one answer of any length.
- the rank: where longer answers are truly better, score follows length for a good reason. Given
  the rank people gave, length should say nothing; what it says all the same is the bias. Ranks
  are coarse, so a trace of true quality stays in f: `worth_applying` measures what that costs.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from statsmodels.nonparametric.smoothers_lowess import lowess

from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, Unit, accuracy, check, margins_of

KNOTS = 41
ITERATIONS = 100
TOLERANCE = 1e-5  # of the scores' sd, between two rounds of backfitting


def fit_length_curve(
    groups: Sequence[Group], unit: Unit = "characters", frac: float = 0.4
) -> LengthCurve:
    """f of the module's model; `frac` is the share of the answers in each local regression.

    Question, rank and the straight part of f are solved exactly (least squares), the bent part by
    LOWESS of the partial residuals, in turn until they settle: the straight part, which alone can
    be confused with the questions' own lengths, then needs no rounds. LOWESS without robustness
    rounds is a linear smoother, for which backfitting settles. Answers of a question with one
    answer, and lengths that differ within no question, say nothing: the curve is then level.
    Raises ValueError without groups, for scores that are not finite and for lengths not known.
    """
    check(groups)
    if not groups:
        raise ValueError("no groups to fit a length curve on: at least one was expected")
    question = np.repeat(np.arange(len(groups)), [len(g.scores) for g in groups])
    scores = np.array([s for g in groups for s in g.scores], dtype=float)
    lengths = np.array([n for g in groups for n in g.sizes(unit)], dtype=float)
    ranks = np.array([r for g in groups for r in g.ranks], dtype=float)

    def within(values: np.ndarray) -> np.ndarray:
        means = np.bincount(question, values) / np.bincount(question)
        return values - means[question]

    told = np.bincount(question)[question] > 1
    if not told.any() or np.allclose(within(lengths), 0):
        return LengthCurve((float(lengths[0]),), (0.0,), unit)
    stretch = float(np.std(within(lengths)))
    columns = [
        (lengths - lengths.mean()) / stretch,
        *((ranks == r) * 1.0 for r in np.unique(ranks)),
    ]
    design = np.stack([within(column) for column in columns], axis=1)
    x = lengths[told]
    knots = np.unique(np.quantile(x, np.linspace(0, 1, KNOTS), method="nearest"))
    spread = float(scores.std())
    bent = np.zeros_like(scores)
    for _ in range(ITERATIONS):
        target = within(scores - bent)
        coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
        partial = bent + target - design @ coefficients
        curved = _smooth(partial[told], x, knots, frac)
        curved -= np.interp(x, knots, curved).mean()
        before, bent = bent, np.interp(lengths, knots, curved)
        if np.abs(bent - before).max() <= TOLERANCE * spread:
            break
    offsets = curved + coefficients[0] * knots / stretch
    offsets -= np.interp(x, knots, offsets).mean()
    return LengthCurve(tuple(knots.tolist()), tuple(offsets.tolist()), unit)


def _smooth(y: np.ndarray, x: np.ndarray, knots: np.ndarray, frac: float) -> np.ndarray:
    """LOWESS of y (N,) on x (N,), at the knots, which are among the x."""
    with np.errstate(invalid="ignore"):
        smooth = lowess(y, x, frac=frac, it=0, xvals=knots)
    # NaN where a whole window has one length: the mean there is what the window says.
    return np.array(
        [
            y[x == knot].mean() if np.isnan(value) else value
            for knot, value in zip(knots, smooth, strict=True)
        ]
    )


def correct(groups: Sequence[Group], curve: LengthCurve) -> list[Group]:
    """The groups with score - f(length) for score."""
    return [
        replace(g, scores=(np.asarray(g.scores) - curve.at(g.sizes(curve.unit))).tolist())
        for g in groups
    ]


def worth_applying(
    groups: Sequence[Group], curve: LengthCurve, tolerance: float = 0.01
) -> tuple[bool, float | None, float | None]:
    """Whether pairwise accuracy falls by at most `tolerance`, and the accuracy before and after.

    The groups should not be those of the fit. Without pairs: False, None, None.
    """
    raw = accuracy(margins_of(groups))
    corrected = accuracy(margins_of(correct(groups, curve)))
    if raw is None or corrected is None:
        return False, None, None
    return raw - corrected <= tolerance + 1e-12, raw, corrected
