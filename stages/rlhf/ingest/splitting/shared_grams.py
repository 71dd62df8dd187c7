"""Texts that may be near-duplicates, found by the rare character 3-grams that they share.

A set similarity join with prefix and positional filtering (Bayardo et al. 2007, "Scaling up all
pairs similarity search"; Xiao et al. 2008, "Efficient similarity joins for near duplicate
detection"). The grams of each set are ordered from rare to frequent. Sets of n and m grams with
Jaccard similarity >= t share at least t / (1 + t) (n + m), so the first that they share has as many
from there on in both: it is among the n - ceil(t n) + 1 first of a set of n. The exact bound keeps
thousands of questions with one long opening from being compared all with all. Measured for
comparison: MinHash with LSH misses pairs near the threshold, takes 1.7 times as long, and needs
3 KB of memory per question instead of 0.3.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_N = 3  # characters per gram
_CHUNK = 20_000  # questions whose grams are in memory at once
_CHARACTERS = 1_000_000  # limit on their characters
_BUCKETS = 1 << 22  # counters of gram frequencies; a collision costs time, never a pair
_BITS = np.uint64(21)  # of a code point
_POINT = np.uint64(0x1FFFFF)

Grams = npt.NDArray[np.uint64]  # three code points each
Numbers = npt.NDArray[np.int64]

_NOTHING: Grams = np.empty(0, dtype=np.uint64)


class Sharing(NamedTuple):
    """Texts that share a gram, the smallest set first.

    `sizes`: of their sets; `limits`: of the size of another set, if this is the first gram that it
    shares with this one and they are similar.
    """

    texts: list[int]
    sizes: list[int]
    limits: list[float]


def gram_set(text: str) -> frozenset[str]:
    """Distinct grams of a text; a shorter text is padded."""
    text = text.ljust(_N, "\0")
    return frozenset([text[i : i + _N] for i in range(len(text) - _N + 1)])


def common_grams(texts: list[str]) -> frozenset[str]:
    """Grams that more than half of the texts have."""
    counts, half = _counts(texts), len(texts) / 2
    exact: Counter[int] = Counter()
    for begin, end in _chunks(texts):
        grams = _grams(texts[begin:end])[1]
        exact.update(grams[counts[_bucket(grams)] > half].tolist())
    mask = (1 << int(_BITS)) - 1
    return frozenset(
        "".join(chr(gram >> shift & mask) for shift in (2 * int(_BITS), int(_BITS), 0))
        for gram, count in exact.items()
        if count > half
    )


class RareGrams:
    """The rarest grams of all texts, but for those left out, enough that near-duplicates share one.

    An entry has a hash of the gram, the text's index, and the gram's rank in the text, as bits of
    one number. A collision of hashes only costs a needless comparison.
    """

    def __init__(self, texts: list[str], threshold: float, left_out: frozenset[str]) -> None:
        without = _packed(left_out)
        counts = _counts(texts, without)
        self._threshold = threshold
        self.sizes = np.empty(len(texts), dtype=np.int32)
        found = []
        for begin, end in _chunks(texts):
            owners, grams = _grams(texts[begin:end], without)
            order = _order(owners, counts[_bucket(grams)])
            owners, grams = owners[order], grams[order]
            sizes = np.bincount(owners, minlength=end - begin)
            self.sizes[begin:end] = sizes
            ranks = np.arange(len(grams)) - (np.cumsum(sizes) - sizes)[owners]
            rare = self._limits(sizes[owners], ranks) >= threshold * sizes[owners]
            found.append((_mixed(grams[rare]), owners[rare] + begin, ranks[rare]))
        most = max(int(ranks.max(initial=0)) for _, _, ranks in found)
        self._rank_bits, self._bits = most.bit_length(), most.bit_length() + len(texts).bit_length()
        high = np.uint64(2**64 - (1 << self._bits))
        self._entries = np.concatenate(
            [
                hashes & high | (owners << self._rank_bits | ranks).astype(np.uint64)
                for hashes, owners, ranks in found
            ]
        )
        self._entries.sort()

    def shared(self) -> Iterator[Sharing]:
        """The texts of each gram that two or more share."""
        if not len(self._entries):
            return
        marks = self._entries >> np.uint64(self._bits)
        same = np.concatenate(([False], marks[1:] == marks[:-1], [False]))
        several = same[:-1] | same[1:]
        marks, low = marks[several], self._entries[several].astype(np.int64)
        low &= (1 << self._bits) - 1
        del same, several
        texts = low >> self._rank_bits
        sizes = self.sizes[texts]
        limits = self._limits(sizes, low & ((1 << self._rank_bits) - 1))
        order = np.lexsort((sizes, marks))
        marks, texts, sizes, limits = marks[order], texts[order], sizes[order], limits[order]
        bounds = np.flatnonzero(np.concatenate(([True], marks[1:] != marks[:-1], [True])))
        leads = limits >= sizes
        for begin, end in pairwise(bounds.tolist() if len(marks) else []):
            if leads[begin : end - 1].any():
                part = slice(begin, end)
                yield Sharing(texts[part].tolist(), sizes[part].tolist(), limits[part].tolist())

    def _limits(self, sizes: Numbers, ranks: Numbers) -> npt.NDArray[np.float64]:
        """The size of a set that shares no more with one of `sizes` than the grams from `ranks`."""
        factor = np.float64(1 + 1 / self._threshold)
        return (sizes - ranks) * factor - sizes + 1e-6  # rounding costs time, never a pair


def _counts(texts: list[str], left_out: Grams = _NOTHING) -> npt.NDArray[np.uint32]:
    """How many texts have a gram of each bucket."""
    counts = np.zeros(_BUCKETS, dtype=np.uint32)
    for begin, end in _chunks(texts):
        np.add.at(counts, _bucket(_grams(texts[begin:end], left_out)[1]), 1)
    return counts


def _grams(texts: list[str], left_out: Grams = _NOTHING) -> tuple[Numbers, Grams]:
    """Distinct (text index, gram) pairs, sorted."""
    padded = [text.ljust(_N, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    owners = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
    grams = points[:-2] << (_BITS + _BITS) | points[1:-1] << _BITS | points[2:]
    within = owners[:-2] == owners[2:]
    owners, grams = owners[:-2][within], grams[within]
    if len(left_out):
        at = np.searchsorted(left_out, grams) % len(left_out)
        kept = left_out[at] != grams
        owners, grams = owners[kept], grams[kept]
    owners, grams = _sorted(owners, grams)
    new = np.ones(len(grams), dtype=bool)
    new[1:] = (owners[1:] != owners[:-1]) | (grams[1:] != grams[:-1])
    return owners[new], grams[new]


def _sorted(owners: Numbers, grams: Grams) -> tuple[Numbers, Grams]:
    """Pairs by owner and gram: as one number if that holds them, twenty times as fast."""
    mask = np.uint64(0xFFFF)
    high, middle, low = grams >> (_BITS + _BITS), grams >> _BITS & _POINT, grams & _POINT
    most = max(int(points.max(initial=0)) for points in (high, middle, low))
    if most > 0xFFFF or owners.max(initial=0) > 0xFFFF:  # 😀
        order = np.lexsort((grams, owners))
        return owners[order], grams[order]
    keys = owners.astype(np.uint64) << np.uint64(48)
    keys |= high << np.uint64(32) | middle << np.uint64(16) | low
    keys.sort()
    high, middle, low = keys >> np.uint64(32) & mask, keys >> np.uint64(16) & mask, keys & mask
    return (keys >> np.uint64(48)).astype(np.int64), high << (_BITS + _BITS) | middle << _BITS | low


def _order(owners: Numbers, counts: npt.NDArray[np.uint32]) -> Numbers:
    """The order by owner and count, otherwise as it is."""
    bits = len(owners).bit_length()
    top = bits + int(counts.max(initial=0)).bit_length()
    if top + int(owners.max(initial=0)).bit_length() > 63:
        return np.lexsort((counts, owners))
    keys = owners << top | counts.astype(np.int64) << bits | np.arange(len(owners))
    keys.sort()
    return keys & ((1 << bits) - 1)


def _packed(grams: frozenset[str]) -> Grams:
    """Grams as numbers, as `_grams` has them."""
    bits = int(_BITS)
    numbers = (ord(g[0]) << 2 * bits | ord(g[1]) << bits | ord(g[2]) for g in sorted(grams))
    return np.array(list(numbers), dtype=np.uint64)


def _mixed(grams: Grams) -> Grams:
    return grams * np.uint64(0x9E3779B97F4A7C15)


def _bucket(grams: Grams) -> npt.NDArray[np.intp]:
    return (_mixed(grams) >> np.uint64(42)).astype(np.intp)


def _chunks(texts: list[str]) -> Iterator[tuple[int, int]]:
    begin = characters = 0
    for end, text in enumerate(texts):
        if end > begin and (end - begin >= _CHUNK or characters + len(text) > _CHARACTERS):
            yield begin, end
            begin, characters = end, 0
        characters += len(text)
    yield begin, len(texts)
