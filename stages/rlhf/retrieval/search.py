"""The passages that a question is about, the best first."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RRF_K = 60  # of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)
DEPTH = 100  # passages of each index that are fused

Scores = NDArray[np.float32]


class Index(Protocol):
    """What finds passages for a question: Lexical, Dense."""

    def find(self, question: str, count: int) -> list[int]:
        """At most `count` passages, the best first."""
        ...


def best(scores: Scores, count: int) -> list[int]:
    """The `count` passages with the highest of P scores; of equal ones those that come first.

    Passages with a score of 0 share nothing with the question and are left out.
    """
    count = min(count, len(scores))
    if count < len(scores):
        limit = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero(scores >= limit)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    return [int(i) for i in order[:count] if scores[i] > 0]


def search(indexes: Sequence[Index], question: str, count: int) -> list[int]:
    """`count` passages by one index; by several, those with the highest sum of 1 / (60 + rank)."""
    if len(indexes) == 1:
        return indexes[0].find(question, count)
    fused: dict[int, float] = {}
    for index in indexes:
        for rank, passage in enumerate(index.find(question, DEPTH), 1):
            fused[passage] = fused.get(passage, 0.0) + 1 / (RRF_K + rank)
    return sorted(fused, key=lambda passage: (-fused[passage], passage))[:count]
