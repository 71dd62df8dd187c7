"""Several ranked rows on one question become one group, with the order that they state together.

Pairs of one prompt are rows of two: a > b and b > c give a > b > c. A pair that rows order both
ways goes by the majority; answers ordered in a circle tie. Nothing is made up: an answer that is
compared with too few of the others to have one rank is left out (a > b > c, d > c: is d above b?).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from stages.rlhf.ingest.cleaning import Answer, Clean, Dropped

MOST_ROWS: Final = 200  # on one question; further ones count as repeats

Pair = tuple[int, int]  # better, worse


@dataclass(frozen=True)
class Merged:
    """One group, or None if the rows contradict one another throughout.

    `first`: the row whose id and labels it has; `others`: further rows whose answers are in it;
    `repeats`: rows that equal an earlier one, or share no answer with the group. `contradicted`:
    statements about pairs that do not hold in it, because as many rows state the opposite.
    """

    row: Clean | None
    first: Clean
    others: tuple[Clean, ...] = ()
    repeats: tuple[Clean, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    contradicted: int = 0


def merge(rows: Sequence[Clean]) -> Merged:
    """The group that rows on one question form, of the first MOST_ROWS of them."""
    linked = _connected(rows[:MOST_ROWS])
    first, *others = _distinct(linked)
    used = set(map(id, (first, *others)))
    repeats = tuple(row for row in rows if id(row) not in used)
    if not others:
        return Merged(first, first, (), repeats)
    answers: dict[str, Answer] = {}
    for row in linked:
        for answer in row.answers:
            answers.setdefault(answer.text, answer)
    votes = _votes(linked, {text: index for index, text in enumerate(answers)})
    below = _closure(len(answers), {p for p, n in votes.items() if n > votes[p[1], p[0]]})
    ranks = _ranks(below)
    group = [replace(a, rank=ranks[n]) for n, a in enumerate(answers.values()) if n in ranks]
    return Merged(
        replace(first, answers=tuple(group)) if len(set(ranks.values())) > 1 else None,
        first,
        tuple(others),
        repeats,
        tuple(Dropped("no_order", a) for n, a in enumerate(answers.values()) if n not in ranks),
        sum(n for (better, worse), n in votes.items() if not below[better] >> worse & 1),
    )


def _distinct(rows: Sequence[Clean]) -> list[Clean]:
    """The rows without those that repeat an earlier one's answers and ranks."""
    found = {frozenset((a.text, a.rank) for a in row.answers): row for row in reversed(rows)}
    return [row for row in rows if any(row is one for one in found.values())]


def _connected(rows: Sequence[Clean]) -> list[Clean]:
    """Those rows that shared answers link to one another: the most answers, of equals the first."""
    roots = list(range(len(rows)))  # the first row that each is known to be linked to
    first: dict[str, int] = {}  # row with the answer

    def root(row: int) -> int:
        while roots[row] != row:
            roots[row] = roots[roots[row]]
            row = roots[row]
        return row

    for number, row in enumerate(rows):
        for answer in row.answers:
            low, high = sorted((root(first.setdefault(answer.text, number)), root(number)))
            roots[high] = low
    sizes = Counter(map(root, first.values()))
    largest = min(sizes, key=lambda one: (-sizes[one], one))
    return [row for number, row in enumerate(rows) if root(number) == largest]


def _votes(rows: Sequence[Clean], index: dict[str, int]) -> Counter[Pair]:
    """How many rows rank the first answer of a pair above the second."""
    return Counter(
        (index[better.text], index[worse.text])
        for row in rows
        for better in row.answers
        for worse in row.answers
        if better.rank < worse.rank
    )


def _closure(count: int, pairs: set[Pair]) -> list[int]:
    """Per answer the set of those below it, as bits; not those in a circle with it."""
    below = [0] * count
    for better, worse in pairs:
        below[better] |= 1 << worse
    for middle in range(count):  # Warshall
        for answer in range(count):
            if below[answer] >> middle & 1:
                below[answer] |= below[middle]
    circles = [
        sum(1 << b for b in range(count) if below[a] >> b & 1 and below[b] >> a & 1)
        for a in range(count)
    ]
    return [low & ~circle for low, circle in zip(below, circles, strict=True)]


def _ranks(below: list[int]) -> dict[int, int]:
    """A rank for each answer that has one, by the number of answers above it.

    Ranks state the order exactly if those of equal number are never ordered, and all others are.
    The answer in most pairs that break this is left out until none does; of equals the one compared
    with the fewest others, then the last.
    """
    kept = list(range(len(below)))
    while True:
        above = {b: sum(below[a] >> b & 1 for a in kept) for b in kept}
        broken = {
            a: sum(
                above[a] != above[b] and not (below[a] >> b & 1 or below[b] >> a & 1) for b in kept
            )
            for a in kept
        }
        compared = {a: sum((below[a] >> b | below[b] >> a) & 1 for b in kept) for a in kept}
        worst = max(kept, key=lambda answer: (broken[answer], -compared[answer], answer))
        if not broken[worst]:
            levels = {n: rank for rank, n in enumerate(sorted(set(above.values())), 1)}
            return {answer: levels[above[answer]] for answer in kept}
        kept.remove(worst)
