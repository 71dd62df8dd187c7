"""How often a judge prefers one system's responses to another's: numpy in, numbers out.

N questions, B bootstrap resamples. Two responses that are identical, or that get equal scores, are
a tie: half a win in `win_rate`, excluded from `win_rate_decided`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stages.rlhf.measure.bootstrap import (
    Statistic,
    Sums,
    blocks,
    bootstrap_counts,
    interval,
    ratio,
    resampled,
    totals,
)

RIDGE = 1e-2  # penalty on phi, added to the cross-entropy summed over questions
ROUNDS = 30  # of Newton's method, which converges much earlier

Values = NDArray[np.float64]


def win_rates(
    ours: Values, theirs: Values, identical: NDArray[np.bool_], resamples: int, seed: int
) -> dict[str, Any]:
    """(N,) scores of two systems' responses -> `win_rate`, `win_rate_decided` with intervals.

    `identical`: both gave the same text, a tie even if rounding makes the scores differ.
    """
    outcome = np.where(identical, 0.0, np.sign(ours - theirs))
    sums = {
        "wins": (outcome > 0) + 0.5 * (outcome == 0),
        "decided_wins": (outcome > 0).astype(float),
        "decided": (outcome != 0).astype(float),
        "count": np.ones(len(outcome)),
    }
    rates: dict[str, tuple[Statistic, str]] = {
        "win_rate": (lambda t: ratio(t["wins"], t["count"]), "no questions"),
        "win_rate_decided": (lambda t: ratio(t["decided_wins"], t["decided"]), "all are ties"),
    }
    draws = resampled(sums, resamples, seed) if resamples else None
    found: dict[str, Any] = {}
    for name, (rate, reason) in rates.items():
        value = float(rate(totals(sums))[0]) if len(outcome) else np.nan
        found |= _with_interval(name, value, None if draws is None else rate(draws), reason)
    return found


def mean_and_interval(
    name: str, values: Values, resamples: int, seed: int, reason: str
) -> dict[str, Any]:
    """(N,), NaN where undefined -> the mean of the others as `name`, with its interval."""
    known = np.isfinite(values)
    sums = {"value": np.where(known, values, 0.0), "count": known.astype(float)}
    if not known.any():
        return {name: None, f"{name}_reason": reason}
    draws = _mean(resampled(sums, resamples, seed)) if resamples else None
    return _with_interval(name, float(_mean(totals(sums))[0]), draws, reason)


def _mean(sums: Sums) -> Values:
    return ratio(sums["value"], sums["count"])


def _with_interval(name: str, value: float, draws: Values | None, reason: str) -> dict[str, Any]:
    """A value with the interval of its resamples, if any; or null with the reason."""
    if not np.isfinite(value):
        return {name: None, f"{name}_reason": reason}
    if draws is None:
        return {name: value}
    ends = interval(draws)
    low, high = ends or (None, None)
    found = {name: value, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return found if ends else {**found, f"{name}_ci_low_reason": "too few questions to resample"}


def length_controlled(
    margins: Values, length_gaps: Values, resamples: int, seed: int
) -> dict[str, Any]:
    """(N,) x 2 -> `win_rate_length_controlled`: the win rate expected at equal lengths.

    margins: (our score - theirs) / T, T the judge's calibration temperature, so that
    p = sigmoid(margin) is the judge's preference probability. length_gaps: our length - theirs.
    Fits logit(p) = theta + phi * tanh(gap / sd(gap)) by logistic regression on p, ridge on phi; the
    rate is sigmoid(theta). After AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475). Refitted for
    every resample.
    """
    gap_sd = length_gaps.std() if len(length_gaps) else 0.0
    name = "win_rate_length_controlled"
    if not len(margins):
        return {name: None, f"{name}_reason": "no questions"}
    x = np.tanh(length_gaps / gap_sd) if gap_sd > 0 else np.zeros(len(margins))
    p = expit(margins)
    whole = float(expit(_fit(p, x, np.ones((1, len(p))))[0, 0]))
    if not resamples:
        return _with_interval(name, whole, None, "")
    counts = bootstrap_counts(len(p), resamples, seed)
    thetas = [_fit(p, x, block)[:, 0] for chunk in counts for block in blocks(chunk)]
    return _with_interval(name, whole, expit(np.concatenate(thetas)), "")


def _fit(p: Values, x: Values, weights: Values) -> Values:
    """(N,) x 2, (B, N) counts -> (B, 2): theta, phi minimising weighted cross-entropy + ridge."""
    beta = np.zeros((len(weights), 2))
    share, ridge = weights / weights.sum(1, keepdims=True), RIDGE / weights.sum(1)
    for _ in range(ROUNDS):
        q = expit(beta[:, :1] + beta[:, 1:] * x)
        error, hessian = share * (q - p), share * q * (1 - q)
        gradient = np.stack([error.sum(1), (error * x).sum(1) + ridge * beta[:, 1]], axis=1)
        a, b = hessian.sum(1), (hessian * x).sum(1)
        c = (hessian * x * x).sum(1) + ridge
        det = np.maximum(a * c - b * b, 1e-12)
        step = np.stack(
            [c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], 1
        )
        beta = beta - np.clip(
            step / det[:, None], -2, 2
        )  # the Hessian vanishes far from the optimum
    return beta
