"""Bootstrap intervals over questions for statistics made of sums: numpy in, numbers out.

Answers of one question hang together, so whole questions are drawn, with replacement (Efron and
Tibshirani 1993, percentile interval). Every statistic here is a function of sums over questions:
a resample is then a vector of counts, and all resamples together one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

LEVEL = 0.95
CHUNK = 4_000_000  # counts held at once
BLOCK = 250_000  # of them worked on at once, which takes several times their memory
LEAST = 0.9  # share of the resamples in which a statistic must exist to have an interval

Sums = Mapping[str, np.ndarray]  # per question (Q, ...); of resamples (B, ...); of all (1, ...)
Statistic = Callable[[Sums], np.ndarray]  # sums (B, ...) -> (B,), NaN where it does not exist


def totals(sums: Sums) -> dict[str, np.ndarray]:
    """(Q, ...) per question -> (1, ...) over all of them."""
    return {name: values.sum(0, keepdims=True) for name, values in sums.items()}


def drawn(questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of Q questions is drawn: counts (b, Q), B rows in all, the same by seed."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // questions)
    for start in range(0, resamples, rows):
        counts = np.empty((min(rows, resamples - start), questions))
        for block in blocks(counts):
            places = rng.integers(questions, size=block.shape)
            cells = (places + np.arange(len(block))[:, None] * questions).ravel()
            block[:] = np.bincount(cells, minlength=block.size).reshape(block.shape)
        yield counts


def blocks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """(b, Q) -> views of its rows in turn, of about BLOCK counts each."""
    rows = max(1, BLOCK // counts.shape[1])
    for start in range(0, len(counts), rows):
        yield counts[start : start + rows]


def resampled(sums: Sums, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """(Q, ...) per question -> (B, ...) over B draws of Q questions, the same for the same seed.

    One call draws the same questions for every sum, so differences of statistics are paired.
    """
    if not sums:
        return {}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sums}
    for counts in drawn(len(next(iter(sums.values()))), resamples, seed):
        for name, values in sums.items():
            parts[name].append(np.tensordot(counts, values, axes=1))
    return {name: np.concatenate(found) for name, found in parts.items()}


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """(B,) a statistic in each resample -> its central LEVEL; None where it seldom exists."""
    there = values[np.isfinite(values)]
    if not len(there) or len(there) < LEAST * len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(there, [tail, 1 - tail])
    return float(low), float(high)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """(B,) / (B,), NaN where nothing was counted."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def correlation_given(sums: Sums) -> np.ndarray:
    """Pearson's r of x and y with the means of C classes taken out; NaN where x or y is level.

    sums: n, x, y (B, C), count and sums of each class; xx, yy, xy (B,), sums of products.
    Partial correlation given the class: cov = sum xy - sum_c x_c y_c / n_c.
    """
    n, x, y = np.maximum(sums["n"], 1), sums["x"], sums["y"]
    cov = sums["xy"] - (x * y / n).sum(-1)
    var_x = sums["xx"] - (x * x / n).sum(-1)
    var_y = sums["yy"] - (y * y / n).sum(-1)
    # What rounding leaves of a variance of 0.
    varies = (var_x > 1e-10 * sums["xx"]) & (var_y > 1e-10 * sums["yy"])
    under = np.where(varies, var_x * var_y, 1.0)
    return np.where(varies, np.clip(cov / np.sqrt(under), -1, 1), np.nan)


def correlation(sums: Sums) -> np.ndarray:
    """Pearson's r of x and y: `correlation_given` with all classes as one."""
    one = {name: sums[name].sum(-1, keepdims=True) for name in ("n", "x", "y")}
    return correlation_given({**sums, **one})
