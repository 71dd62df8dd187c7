"""Exact near-duplicate detection: no pair of questions above the threshold is missed.

Pairs to compare come from `shared_grams`. Questions that all begin, or end, alike are no duplicates
of one another: a group of more than CROWD_SHARE of all questions is compared again by what differs,
that is without the grams that more than half of it share.
"""

import math
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.rlhf.ingest.splitting.shared_grams import RareGrams, Sharing, common_grams, gram_set

# At 0.9 the largest group of 18,250 real questions has 2 of them, 0.01 %.
CROWD_SHARE: Final = 0.01  # of all questions
CROWD: Final = 20  # questions, at least
_CACHED = 200_000  # grams kept as sets

Bools = npt.NDArray[np.bool_]


class Groups:
    """Union-find over 0..count-1; the smallest member represents its group."""

    def __init__(self, count: int) -> None:
        self._parents = array("i", range(count))

    def find(self, member: int) -> int:
        """The smallest member of the group."""
        parents = self._parents
        root = member
        while parents[root] != root:
            root = parents[root]
        while parents[member] != root:
            parents[member], member = root, parents[member]
        return root

    def join(self, one: int, other: int) -> None:
        """Merge two groups."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parents[high] = low

    def split(self, members: Sequence[int], parts: "Groups") -> None:
        """Divide a group, all of whose members are given in order, by groups of their indices."""
        for index, member in enumerate(members):
            self._parents[member] = members[parts.find(index)]

    def crowds(self, least: int) -> list[list[int]]:
        """Sorted members of each group that has at least so many."""
        roots = [self.find(member) for member in range(len(self._parents))]
        sizes = np.bincount(roots, minlength=len(roots))
        found = defaultdict(list)
        for member, root in enumerate(roots):
            if sizes[root] >= least:
                found[root].append(member)
        return list(found.values())


@dataclass(frozen=True)
class Crowd:
    """A group that holds much of the data: how many questions, their share, one of them."""

    size: int
    share: float
    example: str


def group_near_duplicates(
    texts: list[str], threshold: float, free: Bools
) -> tuple[Groups, list[Crowd]]:
    """Groups of texts linked by Jaccard similarity of character 3-grams >= threshold; crowds.

    A link counts only if at least one of its two texts is `free`. A group of more than CROWD_SHARE
    of the texts, and at least CROWD, is linked again by what differs, until none splits. Those that
    remain as large are returned as well, the largest first.
    """
    groups = Groups(len(texts))
    if not free.any():
        return groups, []
    _link(groups, texts, threshold, free, frozenset())
    least = max(CROWD, math.floor(CROWD_SHARE * len(texts)) + 1)
    crowds = []
    pending = groups.crowds(least)
    while pending:
        members = pending.pop()
        inner = [texts[member] for member in members]
        parts = Groups(len(members))
        _link(parts, inner, threshold, free[members], common_grams(inner))
        groups.split(members, parts)
        large = parts.crowds(least)
        if large and len(large[0]) == len(members):
            crowds.append(Crowd(len(members), len(members) / len(texts), inner[0]))
        else:
            pending += [[members[index] for index in crowd] for crowd in large]
    return groups, sorted(crowds, key=lambda crowd: (-crowd.size, crowd.example))


def _link(
    groups: Groups, texts: list[str], threshold: float, free: Bools, left_out: frozenset[str]
) -> None:
    """Join the groups of all pairs whose grams, but for those left out, are similar.

    Texts that have no other grams are equal.
    """
    rare = RareGrams(texts, threshold, left_out)
    compare = _Comparison(groups, texts, threshold, free, left_out)
    empty = np.flatnonzero(rare.sizes == 0)
    if (anyone := empty[free[empty]]).size:
        for other in empty.tolist():
            groups.join(int(anyone[0]), other)
    for sharing in rare.shared():
        compare.all(sharing)


class _Comparison:
    """Compares texts that share a gram, and joins the groups of those that are similar."""

    def __init__(
        self,
        groups: Groups,
        texts: list[str],
        threshold: float,
        free: Bools,
        left_out: frozenset[str],
    ) -> None:
        self._groups, self._texts, self._threshold = groups, texts, threshold
        self._free: list[bool] = free.tolist()
        self._left_out = left_out
        self._kept: dict[int, frozenset[str]] = {}
        self._size = 0

    def all(self, sharing: Sharing) -> None:
        """Compare texts that share a gram, each with those of larger sets."""
        find = self._groups.find
        texts, sizes, limits = sharing
        outside: Sequence[int] = ()  # indices of texts that were not in the largest group
        largest = joined = 0
        for index, (one, size, limit) in enumerate(zip(*sharing, strict=True)):
            if limit < size:
                continue
            if 2 * joined >= len(outside):
                roots = list(map(find, texts))
                ((largest, _),) = Counter(roots).most_common(1)
                outside = [n for n, root in enumerate(roots) if root != largest]
                joined = 0
                if not outside:
                    return
            pool = outside if find(one) == find(largest) else range(len(texts))
            for position in range(bisect_right(pool, index), len(pool)):
                other = pool[position]
                if sizes[other] > limit:
                    break
                if size <= limits[other]:
                    joined += self.pair(one, texts[other], size, sizes[other])

    def pair(self, one: int, other: int, size: int, larger: int) -> bool:
        """Whether the groups of two texts, whose sets have these sizes, were joined."""
        if not (self._free[one] or self._free[other]):
            return False
        if self._groups.find(one) == self._groups.find(other):
            return False
        shared = len(self._set(one) & self._set(other))
        if shared / (size + larger - shared) < self._threshold:
            return False
        self._groups.join(one, other)
        return True

    def _set(self, index: int) -> frozenset[str]:
        """Grams of a text, as substrings; recent ones are kept."""
        found = self._kept.get(index)
        if found is None:
            found = gram_set(self._texts[index]) - self._left_out
            if self._size > _CACHED:
                self._kept.clear()
                self._size = 0
            self._kept[index] = found
            self._size += len(found)
        return found
