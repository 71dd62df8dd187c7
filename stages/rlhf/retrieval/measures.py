"""How well passages are found: hit@k, MRR@10, nDCG@10, from the ranks of the right ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DEPTH = 10
HITS = (1, 5)

Values = dict[str, NDArray[np.float64]]


def ranks(found: Sequence[Sequence[int]], right: Sequence[set[int]]) -> list[list[int]]:
    """Of N lists of passages, best first, the ranks of the right ones, from 1."""
    return [
        [rank for rank, passage in enumerate(passages, 1) if passage in wanted]
        for passages, wanted in zip(found, right, strict=True)
    ]


def measure(found: Sequence[Sequence[int]], right: Sequence[set[int]]) -> Values:
    """hit@k, mrr@10, ndcg@10 by question, each (N) in [0, 1].

    A question may have several right passages; hit@k asks for one of them. nDCG is that of Järvelin
    and Kekäläinen (2002) with relevance 0 or 1. Raises ValueError for one without any.
    """
    if any(not wanted for wanted in right):
        raise ValueError("a question without a right passage has no rank")
    all_ranks = ranks(found, right)
    first = np.array([min(own, default=np.inf) for own in all_ranks])
    values = {f"hit@{k}": (first <= k).astype(np.float64) for k in HITS}
    values[f"mrr@{DEPTH}"] = np.where(first <= DEPTH, 1 / first, 0.0)
    gains = [sum(1 / np.log2(1 + rank) for rank in own if rank <= DEPTH) for own in all_ranks]
    ideal = [sum(1 / np.log2(1 + i) for i in range(1, min(DEPTH, len(w)) + 1)) for w in right]
    values[f"ndcg@{DEPTH}"] = np.array(gains) / np.array(ideal)
    return values
