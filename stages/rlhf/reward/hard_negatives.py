"""Answers made worse on purpose, out of the data alone: what a policy that hacks a reward finds.

Each is made from a group's best answer, so what is known of it is this:
    echo, other, empty   say nothing of use: ranked below every answer of the group
    loop, cut, filler    worse than the answer they are made from; whether they are worse than a
                         wrong answer nobody has said, so they are compared with no other answer
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stages.rlhf.korean import same_text, sentence_ends
from stages.rlhf.records import RmRow
from stages.rlhf.runtime import derive_seed

MAX_ANSWERS = 9  # of a group, the extra one included
TRIES = 20  # other rows looked at for an answer or a sentence that fits
ALIKE = 0.2  # share of character pairs in common from which two rows may be about one thing

Fits = Callable[[str], bool]  # whether an answer is within the cap in tokens


@dataclass(frozen=True)
class HardNegative:
    """An answer and what was made of it."""

    kind: str
    original: int  # place of the original in the row's answers
    text: str


def loop(answer: str, rng: random.Random) -> str | None:
    """The answer up to some word, and then its last one to three words three times more."""
    words = answer.split()
    if not words:
        return None
    end = rng.randint(1, len(words))
    unit = words[max(0, end - rng.randint(1, 3)) : end]
    return " ".join(words[:end] + 3 * unit)


def cut(answer: str, rng: random.Random) -> str | None:
    """The answer broken off inside a sentence, at least one letter from where any sentence ends."""
    ends = [0, *sentence_ends(answer), len(answer)]
    inside = [
        i
        for i in range(2, len(answer) - 1)
        if answer[i - 1].isalnum() and all(not end - 2 < i <= end + 2 for end in ends)
    ]
    return answer[: rng.choice(inside)] if inside else None


def filler(answer: str, other: str, rng: random.Random) -> str | None:
    """The answer with a sentence of another answer behind it: longer, and no better."""
    starts = [0, *sentence_ends(other)]
    sentences = [other[a:b].strip() for a, b in pairwise(starts)]
    sentences = [sentence for sentence in sentences if sentence not in answer]
    return f"{answer} {rng.choice(sentences)}" if sentences else None


def alike(one: str, other: str) -> float:
    """Character pairs in common, of the text that has fewer: in [0, 1]."""
    pairs = [{text[i : i + 2] for i in range(len(text) - 1)} for text in (one, other)]
    return len(pairs[0] & pairs[1]) / max(1, min(map(len, pairs)))


MAKERS: dict[str, Callable[[RmRow, str, str, random.Random], str | None]] = {
    "loop": lambda row, best, other, rng: loop(best, rng),
    "echo": lambda row, best, other, rng: row.question,
    "cut": lambda row, best, other, rng: cut(best, rng),
    "other": lambda row, best, other, rng: other or None,
    "filler": lambda row, best, other, rng: filler(best, other, rng),
    "empty": lambda row, best, other, rng: "",
}
LAST = ("echo", "other", "empty")  # ranked below all; the rest is compared with its original alone


def best_of(row: RmRow) -> int:
    """The place of a best answer, the first of equals."""
    return row.ranks.index(min(row.ranks))


def make(
    row: RmRow, kind: str, rows: Sequence[RmRow], fits: Fits, rng: random.Random
) -> HardNegative | None:
    """One of that kind for this row.

    None where it cannot be made, does not fit, or is an answer the group has already.
    """
    original = best_of(row)
    text = MAKERS[kind](row, row.answers[original], _other_answer(row, rows, rng), rng)
    if text is None or any(same_text(text, answer) for answer in row.answers) or not fits(text):
        return None
    return HardNegative(kind, original, text)


def _other_answer(row: RmRow, rows: Sequence[RmRow], rng: random.Random) -> str:
    """The best answer to a question about something else; empty where none is found."""
    mine = f"{row.question} {row.answers[best_of(row)]}"
    for _ in range(TRIES):
        other = rows[rng.randrange(len(rows))]
        answer = other.answers[best_of(other)]
        if alike(mine, f"{other.question} {answer}") < ALIKE:
            return answer
    return ""


def for_training(
    rows: Sequence[RmRow], share: float, fits: Fits, *seed: object
) -> list[HardNegative | None]:
    """One for about `share` of the rows, of a kind drawn for each; None for the others.

    A row with nine answers gets none; where a kind cannot be made the next one is tried.
    """
    return [_draw(row, rows, share, fits, derive_seed(*seed, row.id)) for row in rows]


def _draw(
    row: RmRow, rows: Sequence[RmRow], share: float, fits: Fits, seed: int
) -> HardNegative | None:
    rng = random.Random(seed)
    if rng.random() >= share or len(row.answers) >= MAX_ANSWERS:
        return None
    made = (make(row, kind, rows, fits, rng) for kind in rng.sample(list(MAKERS), len(MAKERS)))
    return next((found for found in made if found is not None), None)


def held_out(
    rows: Sequence[RmRow], fits: Fits, *seed: object
) -> dict[str, list[tuple[RmRow, HardNegative]]]:
    """One of every kind for each row that allows it, to see whether its original scores higher."""
    found: dict[str, list[tuple[RmRow, HardNegative]]] = {kind: [] for kind in MAKERS}
    for row in rows:
        for kind, twins in found.items():
            rng = random.Random(derive_seed(*seed, row.id, kind))
            made = make(row, kind, rows, fits, rng)
            if made is not None:
                twins.append((row, made))
    return found


def counts(made: Sequence[HardNegative | None]) -> dict[str, int]:
    """How many of each kind."""
    found = Counter(one.kind for one in made if one is not None)
    return {kind: found[kind] for kind in MAKERS}
