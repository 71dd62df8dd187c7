"""Hard negatives: corrupted answers of the kinds that a reward-hacking policy produces.

Each is made from a group's best answer, without further data:
    echo, other, empty   useless: ranked below every answer of the group
    loop, cut, filler    worse than the answer they are made from; compared with no other answer,
                         because nobody has ranked them against, say, a wrong one
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stages.rlhf.korean import same_text, sentence_ends
from stages.rlhf.records import RmRow
from stages.rlhf.runtime import derive_seed

TRIES = 20  # other rows tried for an unrelated answer
ALIKE = 0.2  # share of common character bigrams at which two rows may be related

Fits = Callable[[str], bool]  # whether an answer is within the token limit


@dataclass(frozen=True)
class HardNegative:
    """A corrupted answer and its original."""

    kind: str
    original: int  # index of the original in the row's answers
    text: str


def loop(answer: str, rng: random.Random) -> str | None:
    """A prefix of the answer with its last one to three words repeated three more times."""
    words = list(re.finditer(r"\S+", answer))
    if not words:
        return None
    end = rng.randint(1, len(words))
    unit = [word[0] for word in words[max(0, end - rng.randint(1, 3)) : end]]
    return " ".join([answer[: words[end - 1].end()], *3 * unit])


def cut(answer: str, rng: random.Random) -> str | None:
    """The answer truncated inside a sentence, not next to any sentence boundary."""
    ends = [0, *sentence_ends(answer), len(answer)]
    inside = [
        i
        for i in range(2, len(answer) - 1)
        if answer[i - 1].isalnum() and all(not end - 2 < i <= end + 2 for end in ends)
    ]
    return answer[: rng.choice(inside)] if inside else None


def filler(answer: str, other: str, rng: random.Random) -> str | None:
    """The answer followed by a sentence of another answer: longer, and no better."""
    starts = [0, *sentence_ends(other)]
    sentences = [other[a:b].strip() for a, b in pairwise(starts)]
    sentences = [sentence for sentence in sentences if sentence not in answer]
    if not sentences:
        return None
    gap = "\n" if "\n" in answer else " "  # a closing ``` has its line alone
    return f"{answer}{gap}{rng.choice(sentences)}"


def alike(one: str, other: str) -> float:
    """Overlap coefficient of character bigrams, in [0, 1]."""
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
LAST = ("echo", "other", "empty")  # ranked below all answers; others only below their original


def make(
    row: RmRow, kind: str, rows: Sequence[RmRow], fits: Fits, rng: random.Random
) -> HardNegative | None:
    """A hard negative of this kind for this row.

    None if it cannot be made, is too long, or equals an answer of the group.
    """
    text = MAKERS[kind](row, row.answers[row.best], _other_answer(row, rows, rng), rng)
    if text is None or any(same_text(text, answer) for answer in row.answers) or not fits(text):
        return None
    return HardNegative(kind, row.best, text)


def _other_answer(row: RmRow, rows: Sequence[RmRow], rng: random.Random) -> str:
    """The best answer to an unrelated question; empty if none is found."""
    mine = f"{row.question} {row.answers[row.best]}"
    for _ in range(TRIES):
        other = rows[rng.randrange(len(rows))]
        answer = other.answers[other.best]
        if alike(mine, f"{other.question} {answer}") < ALIKE:
            return answer
    return ""


def for_training(
    rows: Sequence[RmRow], share: float, fits: Fits, *seed: object
) -> list[HardNegative | None]:
    """A hard negative of a random kind for about `share` of the rows; None for the others.

    If a kind cannot be made, the next one is tried.
    """
    return [_sample(row, rows, share, fits, derive_seed(*seed, row.id)) for row in rows]


def _sample(
    row: RmRow, rows: Sequence[RmRow], share: float, fits: Fits, seed: int
) -> HardNegative | None:
    rng = random.Random(seed)
    if rng.random() >= share:
        return None
    candidates = (make(row, kind, rows, fits, rng) for kind in rng.sample([*MAKERS], len(MAKERS)))
    return next((found for found in candidates if found is not None), None)


def held_out(
    rows: Sequence[RmRow], fits: Fits, *seed: object
) -> dict[str, list[tuple[int, HardNegative]]]:
    """Per kind, a hard negative for each row that allows it, with the row's index."""
    found: dict[str, list[tuple[int, HardNegative]]] = {kind: [] for kind in MAKERS}
    for index, row in enumerate(rows):
        for kind, pairs in found.items():
            rng = random.Random(derive_seed(*seed, row.id, kind))
            negative = make(row, kind, rows, fits, rng)
            if negative is not None:
                pairs.append((index, negative))
    return found


def counts(negatives: Sequence[HardNegative | None]) -> dict[str, int]:
    """Number of each kind."""
    found = Counter(one.kind for one in negatives if one is not None)
    return {kind: found[kind] for kind in MAKERS}
