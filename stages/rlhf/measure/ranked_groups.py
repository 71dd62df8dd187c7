"""Questions with ranked and scored answers, and the pairs in them: numpy alone.

A group is one question: scores, ranks (1 = best, ties allowed) and lengths of its K answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Unit = Literal["characters", "tokens"]


@dataclass(frozen=True)
class Group:
    """One question's answers."""

    scores: Sequence[float]
    ranks: Sequence[float]
    lengths: Sequence[int]  # characters
    defects: Sequence[str] | None = None
    kind: str | None = None
    tokens: Sequence[int] | None = None

    def sizes(self, unit: Unit) -> Sequence[int]:
        """Lengths of the answers in this unit. Raises ValueError where tokens are not known."""
        if unit == "characters":
            return self.lengths
        if self.tokens is None:
            raise ValueError("lengths in tokens were asked for; the group holds characters alone")
        return self.tokens


@dataclass(frozen=True)
class Pair:
    """Two answers of one question that people did not tie; the first is the better one."""

    margin: float  # score of the better minus score of the worse
    gap: int  # places between them in the question's ranking
    lengths: tuple[int, int]
    defect: str | None  # the worst fault of the worse one, where the better one has none


def check(groups: Sequence[Group]) -> None:
    """Raises ValueError naming the question (from 0) whose numbers cannot be used."""
    for index, group in enumerate(groups):
        if not len(group.scores):
            raise ValueError(f"question {index} has no answers; at least one was expected")
        for name in ("ranks", "lengths", "tokens", "defects"):
            values = getattr(group, name)
            if values is not None and len(values) != len(group.scores):
                raise ValueError(
                    f"question {index} has {len(group.scores)} scores and {len(values)} {name}"
                )
        for name in ("scores", "ranks"):
            for value in getattr(group, name):
                if not np.isfinite(value):
                    raise ValueError(f"question {index}: {name} hold {value}, not a finite number")


def pairs_of(group: Group) -> list[Pair]:
    """Every pair of a group, better answer first; ties give none."""
    places = {rank: place for place, rank in enumerate(sorted(set(group.ranks)))}
    found = []
    for i, rank_i in enumerate(group.ranks):
        for j, rank_j in enumerate(group.ranks):
            if rank_i < rank_j:
                right = group.defects is not None and group.defects[i] == "none"
                found.append(
                    Pair(
                        margin=group.scores[i] - group.scores[j],
                        gap=places[rank_j] - places[rank_i],
                        lengths=(group.lengths[i], group.lengths[j]),
                        defect=group.defects[j].split("+")[0] if right and group.defects else None,
                    )
                )
    return found


def margins_of(groups: Sequence[Group]) -> np.ndarray:
    """(N,) margins of all pairs of all groups."""
    return np.array([pair.margin for group in groups for pair in pairs_of(group)], dtype=float)


def hits_of(margins: Iterable[float] | np.ndarray) -> np.ndarray:
    """(N,) margins -> 1 where the better answer scores higher, 0.5 where the scores are equal."""
    return (np.sign(np.array(list(margins), dtype=float)) + 1) / 2


def accuracy(margins: Iterable[float]) -> float | None:
    """Share of pairs in the right order; an equal score counts half. None without pairs."""
    hits = hits_of(margins)
    return float(hits.mean()) if len(hits) else None
