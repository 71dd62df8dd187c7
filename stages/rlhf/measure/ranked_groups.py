"""Questions with ranked and scored answers, and their pairs: numpy only.

A group is one question: scores, ranks (1 = best, ties allowed) and lengths of its K answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.rlhf.records import LengthUnit


@dataclass(frozen=True)
class Group:
    """The answers to one question."""

    scores: Sequence[float]
    ranks: Sequence[float]
    lengths: Sequence[int]  # characters
    defects: Sequence[str] | None = None
    kind: str | None = None
    tokens: Sequence[int] | None = None

    def sizes(self, unit: LengthUnit) -> Sequence[int]:
        """Lengths of the answers in this unit. Raises ValueError if tokens are unknown."""
        if unit == "characters":
            return self.lengths
        if self.tokens is None:
            raise ValueError("lengths in tokens requested, but the group has characters only")
        return self.tokens


@dataclass(frozen=True)
class Pair:
    """Two answers to one question with different human ranks, the better one first."""

    margin: float  # score of the better minus score of the worse
    gap: int  # difference of their dense ranks within the question
    lengths: tuple[int, int]
    defect: str | None  # worst defect of the worse answer, if the better answer has none


def check(groups: Sequence[Group]) -> None:
    """Raise ValueError naming the question (from 0) with invalid numbers."""
    for index, group in enumerate(groups):
        if not len(group.scores):
            raise ValueError(f"question {index} has no answers; expected at least one")
        for name in ("ranks", "lengths", "tokens", "defects"):
            values = getattr(group, name)
            if values is not None and len(values) != len(group.scores):
                raise ValueError(
                    f"question {index} has {len(group.scores)} scores and {len(values)} {name}"
                )
        for name in ("scores", "ranks"):
            for value in getattr(group, name):
                if not np.isfinite(value):
                    raise ValueError(
                        f"question {index}: {name} contain {value}, not a finite number"
                    )


def pairs_of(group: Group) -> list[Pair]:
    """Every pair of a group, better answer first; ties form no pair."""
    dense = {rank: level for level, rank in enumerate(sorted(set(group.ranks)))}
    found = []
    for i, rank_i in enumerate(group.ranks):
        for j, rank_j in enumerate(group.ranks):
            if rank_i < rank_j:
                flawless = group.defects is not None and group.defects[i] == "none"
                found.append(
                    Pair(
                        margin=group.scores[i] - group.scores[j],
                        gap=dense[rank_j] - dense[rank_i],
                        lengths=(group.lengths[i], group.lengths[j]),
                        defect=group.defects[j].split("+")[0]
                        if flawless and group.defects
                        else None,
                    )
                )
    return found


def margins_of(groups: Sequence[Group]) -> np.ndarray:
    """(N,) margins of all pairs of all groups."""
    return np.array([pair.margin for group in groups for pair in pairs_of(group)], dtype=float)


def hits_of(margins: Iterable[float] | np.ndarray) -> np.ndarray:
    """(N,) margins -> 1 if the better answer scores higher, 0.5 for equal scores, else 0."""
    return (np.sign(np.array(list(margins), dtype=float)) + 1) / 2


def accuracy(margins: Iterable[float]) -> float | None:
    """Share of correctly ordered pairs; equal scores count half. None without pairs."""
    hits = hits_of(margins)
    return float(hits.mean()) if len(hits) else None
