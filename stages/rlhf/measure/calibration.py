"""From score margins to calibrated probabilities: temperature scaling, reliability, ECE.

Bradley and Terry: Pr[i is better than j] = sigmoid((s_i - s_j) / T). T is fitted on validation
(temperature scaling, Guo et al. 2017, arXiv 1706.04599); it changes confidence, never the order.
A margin is the score of the answer that people ranked higher minus the score of the other.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from stages.rlhf.measure.ranked_groups import hits_of

# Search range of T, in multiples of the margins' root mean square.
LOWEST, HIGHEST = 0.01, 100.0


class Reliability(NamedTuple):
    """Non-empty bins, in ascending order; every array is (bins,)."""

    low: np.ndarray
    high: np.ndarray
    pairs: np.ndarray
    predicted: np.ndarray  # mean probability
    observed: np.ndarray  # mean outcome


def negative_log_likelihood(margins: np.ndarray, temperature: float) -> float:
    """mean(-log sigmoid(margin / T)) = mean(log(1 + exp(-margin / T)))."""
    return float(np.logaddexp(0.0, -np.asarray(margins, dtype=float) / temperature).mean())


def fit_temperature(margins: np.ndarray) -> float:
    """(N,) margins of pairs without human ties -> T that minimises the negative log-likelihood.

    The loss is convex in 1/T, so it has one minimum in log T. If every pair is ordered correctly it
    decreases as T -> 0, and if the model is no better than chance as T -> infinity: T is then the
    bound, LOWEST or HIGHEST times the root mean square of the margins. The bounds are relative, so
    T is proportional to the scores. If all margins are 0, T is 1.
    Raises ValueError without pairs or for a margin that is not finite.
    """
    values = np.asarray(margins, dtype=float)
    if not len(values):
        raise ValueError("no pairs to fit a temperature on: expected at least one")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} margins are not finite")
    largest = float(np.abs(values).max())
    if largest == 0:
        return 1.0
    rms = largest * float(np.sqrt(np.mean((values / largest) ** 2)))  # no overflow in the square
    scaled = values / rms

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scaled, float(np.exp(log_temperature)))

    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # The bounded search never evaluates the bounds themselves; use one if it is better.
    best = min((float(found.x), *bounds), key=loss)
    return rms * float(np.exp(best))


def reliability(margins: np.ndarray, temperature: float, bins: int = 10) -> Reliability:
    """(N,) margins -> predicted and observed accuracy in `bins` equal bins of [0.5, 1].

    A pair is unordered, so p is the model's confidence sigmoid(|margin| / T) >= 0.5 that the answer
    with the higher score is the better one. The outcome is 1 if it is, 0 if not, and 0.5 for equal
    scores (p = 0.5). Bins are [low, high), the last one closed; empty bins are omitted.
    """
    values = np.asarray(margins, dtype=float)
    confidence = expit(np.abs(values) / temperature)
    outcome = hits_of(values)
    edges = np.linspace(0.5, 1.0, bins + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    pairs = np.bincount(at, minlength=bins)
    filled = pairs > 0
    return Reliability(
        low=edges[:-1][filled],
        high=edges[1:][filled],
        pairs=pairs[filled],
        predicted=np.bincount(at, confidence, bins)[filled] / pairs[filled],
        observed=np.bincount(at, outcome, bins)[filled] / pairs[filled],
    )


def ece(margins: np.ndarray, temperature: float, bins: int = 10) -> float | None:
    """Expected calibration error, sum_b n_b / n * |mean p - mean outcome|; None without pairs.

    Naeini et al. 2015; p and outcome are those of `reliability`.
    """
    table = reliability(margins, temperature, bins)
    if not len(table.pairs):
        return None
    gaps = np.abs(table.predicted - table.observed)
    return float((table.pairs * gaps).sum() / table.pairs.sum())
