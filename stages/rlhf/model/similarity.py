"""Similarity of embeddings: N pairs, D dimensions; row i is compared with row i.

Embeddings are not normalised: cosine ignores their norms, Euclidean distance does not. All sums are
in float64.
"""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]  # (N, D)
Values = NDArray[np.float64]  # (N,)


def cosine(a: Vectors, b: Vectors) -> Values:
    """(N, D) x 2 -> (N,) in [-1, 1]: a.b / (|a| |b|); 0 where a vector is zero (an empty text)."""
    a, b = _pairs(a, b)
    return _ratio((a * b).sum(-1), np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def euclidean_distance(a: Vectors, b: Vectors) -> Values:
    """(N, D) x 2 -> (N,), >= 0: |a - b|."""
    a, b = _pairs(a, b)
    return np.linalg.norm(a - b, axis=-1)


def euclidean_similarity(a: Vectors, b: Vectors) -> Values:
    """(N, D) x 2 -> (N,) in (0, 1]: 1 / (1 + |a - b|)."""
    return 1 / (1 + euclidean_distance(a, b))


def pearson(a: Vectors, b: Vectors) -> Values:
    """(N, D) x 2 -> (N,) in [-1, 1]: correlation over the D components; 0 where one is constant."""
    a, b = _pairs(a, b)
    return cosine(a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True))


def _pairs(a: Vectors, b: Vectors) -> tuple[Vectors, Vectors]:
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"expected two (N, D) arrays of one shape, not {a.shape}, {b.shape}")
    return a.astype(np.float64), b.astype(np.float64)


def _ratio(dot: Values, norms: Values) -> Values:
    # Clipped because rounding can put the cosine of equal vectors slightly above 1.
    tiny = np.finfo(np.float64).tiny
    return np.clip(np.where(norms > tiny, dot / np.maximum(norms, tiny), 0.0), -1.0, 1.0)
