"""From score margins to probabilities, and how far to trust them: numpy in, numbers out.

Bradley and Terry: Pr[i is better than j] = sigmoid((s_i - s_j) / T). T is fitted on validation
(temperature scaling, Guo et al. 2017, arXiv 1706.04599); it moves no order, only the certainty.
A margin is the score of the answer that people ranked higher minus that of the other.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from stages.rlhf.measure.ranked_groups import hits_of

# T is sought within these multiples of the margins' root mean square.
LOWEST, HIGHEST = 0.01, 100.0


class Reliability(NamedTuple):
    """Bins that hold pairs, in rising order; every array is (bins,)."""

    low: np.ndarray
    high: np.ndarray
    pairs: np.ndarray
    predicted: np.ndarray  # mean probability
    observed: np.ndarray  # mean outcome


def negative_log_likelihood(margins: np.ndarray, temperature: float) -> float:
    """mean(-log sigmoid(margin / T)) = mean(log(1 + exp(-margin / T)))."""
    return float(np.logaddexp(0.0, -np.asarray(margins, dtype=float) / temperature).mean())


def fit_temperature(margins: np.ndarray) -> float:
    """(N,) margins of pairs without human ties -> T of the least negative log-likelihood.

    The loss is convex in 1/T, so it has one minimum in log T. Where every pair is right it falls
    without end as T -> 0, and where the model does no better than chance as T -> infinity: T is
    then the bound, LOWEST or HIGHEST times the root mean square of the margins. The bounds go
    with the margins, so T scales as the scores do. Margins that are all 0 say nothing: T is 1.
    Raises ValueError without pairs and where a margin is not finite.
    """
    values = np.asarray(margins, dtype=float)
    if not len(values):
        raise ValueError("no pairs to fit a temperature on: at least one was expected")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} margins are not finite")
    largest = float(np.abs(values).max())
    if largest == 0:
        return 1.0
    unit = largest * float(np.sqrt(np.mean((values / largest) ** 2)))  # no overflow in the square
    scaled = values / unit

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scaled, float(np.exp(log_temperature)))

    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # The bounded search stops short of a bound; take the bound itself where it is better.
    best = min((float(found.x), *bounds), key=loss)
    return unit * float(np.exp(best))


def reliability(margins: np.ndarray, temperature: float, bins: int = 10) -> Reliability:
    """(N,) margins -> predicted and observed shares in `bins` equal bins of [0.5, 1].

    A pair has no order of its own, so the claim that counts is the model's: p =
    sigmoid(|margin| / T), at least 0.5, that the answer with the higher score is the better one.
    The outcome is 1 where it is, 0 where it is not, 0.5 where the scores are equal (the model
    claims 0.5, and either would do). Bins are [low, high), the last one closed; empty ones are
    left out.
    """
    values = np.asarray(margins, dtype=float)
    claimed = expit(np.abs(values) / temperature)
    outcome = hits_of(values)
    edges = np.linspace(0.5, 1.0, bins + 1)
    at = np.clip(np.searchsorted(edges, claimed, side="right") - 1, 0, bins - 1)
    pairs = np.bincount(at, minlength=bins)
    held = pairs > 0
    return Reliability(
        low=edges[:-1][held],
        high=edges[1:][held],
        pairs=pairs[held],
        predicted=np.bincount(at, claimed, bins)[held] / pairs[held],
        observed=np.bincount(at, outcome, bins)[held] / pairs[held],
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
