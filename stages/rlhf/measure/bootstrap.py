"""Bootstrap intervals over questions, for statistics that are functions of sums: numpy in and out.

Answers to one question are dependent, so whole questions are resampled with replacement (Efron and
Tibshirani 1993, percentile interval). Every statistic is a function of sums over questions, so a
resample is a vector of counts, and all resamples together are one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

LEVEL = 0.95
CHUNK = 4_000_000  # counts in memory at once
BLOCK = 250_000  # counts processed at once, which takes several times their memory
MIN_DEFINED = 0.9  # share of resamples in which a statistic must be defined to get an interval

Sums = Mapping[str, np.ndarray]  # per question (Q, ...); per resample (B, ...); total (1, ...)
Statistic = Callable[[Sums], np.ndarray]  # sums (B, ...) -> (B,), NaN where undefined


def totals(sums: Sums) -> dict[str, np.ndarray]:
    """(Q, ...) per question -> (1, ...) over all questions."""
    return {name: values.sum(0, keepdims=True) for name, values in sums.items()}


def bootstrap_counts(questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts of each of Q questions per resample, in chunks (b, Q) of B rows in total."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // questions)
    for start in range(0, resamples, rows):
        counts = np.empty((min(rows, resamples - start), questions))
        for block in blocks(counts):
            sampled = rng.integers(questions, size=block.shape)
            cells = (sampled + np.arange(len(block))[:, None] * questions).ravel()
            block[:] = np.bincount(cells, minlength=block.size).reshape(block.shape)
        yield counts


def blocks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """(b, Q) -> successive views of its rows, of about BLOCK counts each."""
    rows = max(1, BLOCK // counts.shape[1])
    for start in range(0, len(counts), rows):
        yield counts[start : start + rows]


def resampled(sums: Sums, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """(Q, ...) per question -> (B, ...) over B resamples of Q questions; determined by the seed.

    A seed resamples the same questions for every sum, so differences of statistics are paired.
    """
    if not sums:
        return {}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sums}
    for counts in bootstrap_counts(len(next(iter(sums.values()))), resamples, seed):
        for name, values in sums.items():
            parts[name].append(np.tensordot(counts, values, axes=1))
    return {name: np.concatenate(found) for name, found in parts.items()}


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """(B,) a statistic per resample -> its central LEVEL interval; None if often undefined."""
    defined = values[np.isfinite(values)]
    if not len(defined) or len(defined) < MIN_DEFINED * len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """(B,) / (B,), NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def correlation_given(sums: Sums) -> np.ndarray:
    """Partial correlation of x and y given one of C classes; NaN where x or y is constant.

    sums: n, x, y (B, C), count and sums per class; xx, yy, xy (B,), sums of products.
    Pearson's r after subtracting class means: cov = sum xy - sum_c x_c y_c / n_c.
    """
    n, x, y = np.maximum(sums["n"], 1), sums["x"], sums["y"]
    cov = sums["xy"] - (x * y / n).sum(-1)
    var_x = sums["xx"] - (x * x / n).sum(-1)
    var_y = sums["yy"] - (y * y / n).sum(-1)
    # a variance of 0, up to rounding
    varies = (var_x > 1e-10 * sums["xx"]) & (var_y > 1e-10 * sums["yy"])
    product = np.where(varies, var_x * var_y, 1.0)
    return np.where(varies, np.clip(cov / np.sqrt(product), -1, 1), np.nan)


def correlation(sums: Sums) -> np.ndarray:
    """Pearson's r of x and y: `correlation_given` with all classes merged."""
    one = {name: sums[name].sum(-1, keepdims=True) for name in ("n", "x", "y")}
    return correlation_given({**sums, **one})
