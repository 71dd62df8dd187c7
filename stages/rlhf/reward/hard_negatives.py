"""Hard negatives: corrupted answers of the kinds that a reward-hacking policy produces.

Each is made from a group's best answer, without further data, or sampled from SFT (`slip`):
    echo, other, empty    useless: ranked below every answer of the group
    stuck, count, list    useless, too: endless up to the token limit, and without the best answer
    loop, edited, cut,    worse than the answer they are made from; compared with no other answer,
    missing_eos, filler,  because nobody has ranked them against, say, a wrong one
    slip
What the policy is cut off in has no EOS: `missing_eos`, and half of the endless ones, so that
neither the loop nor the missing EOS alone explains the rank.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from itertools import cycle, pairwise

from stages.rlhf.chat import Codec
from stages.rlhf.korean import same_text, sentence_ends
from stages.rlhf.records import RmRow
from stages.rlhf.runtime import derive_seed

TRIES = 20  # other rows tried for an unrelated answer
ALIKE = 0.2  # share of common character bigrams at which two rows may be related
ENDLESS = 4096  # characters of an endless answer that no token limit cuts off
ENDED = 0.5  # share of endless answers that stop at the limit with EOS

_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")

Fits = Callable[[str], bool]  # whether an answer is within the token limit


@dataclass(frozen=True)
class HardNegative:
    """A corrupted answer and its original."""

    kind: str
    original: int  # index of the original in the row's answers
    text: str
    ended: bool = True  # False: cut off, no EOS follows
    ids: tuple[int, ...] = ()  # of a sampled response: its text may lack half a character

    def response_ids(self, codec: Codec) -> list[int]:
        """Its ids, EOS included if it ended."""
        if self.ids:
            return list(self.ids)
        ids = codec.response_ids(self.text)
        return ids if self.ended else ids[:-1]


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


def edited(answer: str, rng: random.Random) -> str | None:
    """A sentence of the answer two to four times more, each time without one of its words."""
    found = [(end, s) for end, s in _sentences(answer) if len(s.split()) >= 3]
    if not found:
        return None
    end, sentence = rng.choice(found)
    copies = []
    for _ in range(rng.randint(2, 4)):
        words = sentence.split()
        del words[rng.randrange(len(words) - 1)]
        copies.append(" ".join(words))
    return " ".join([answer[:end].rstrip(), *copies])


def stuck(answer: str, question: str, fits: Fits, rng: random.Random) -> str | None:
    """A few words of the answer, but not all of them, or the question, again and again."""
    words = answer.split()
    if rng.random() < 0.3 or len(words) < 2:
        unit = question
    else:
        size = rng.randint(1, min(6, len(words) - 1))
        start = rng.randint(0, len(words) - size)
        unit = " ".join(words[start : start + size])
    gap = rng.choice([" ", "\n"])
    return _endless((f"{unit}{gap}" for _ in numbers()), fits)


def count(answer: str, fits: Fits, rng: random.Random) -> str | None:
    """A sentence of the answer again and again, its number higher each time and never right.

    A sentence without a number gets one instead of its first word.
    """
    found = [s for _, s in _sentences(answer) if _NUMBER.search(s) or len(s.split()) > 1]
    if not found:
        return None
    sentence = rng.choice(found)
    if number := _NUMBER.search(sentence):
        before, first, after = sentence[: number.start()], int(number[0]), sentence[number.end() :]
    else:
        first, unit = rng.choice([(rng.randint(1900, 2020), "년 "), (0, ". ")])
        before, after = "", unit + sentence.split(maxsplit=1)[1]
    gap = rng.choice([" ", "\n"])
    return _endless((f"{before}{i}{after}{gap}" for i in numbers(first + 1)), fits)


def listed(answer: str, other: str, fits: Fits, rng: random.Random) -> str | None:
    """A list without end: words of another answer, each followed by the same end of a sentence."""
    found = [s.split() for _, s in _sentences(answer) if len(s.split()) > 1]
    if not found or not other.split():
        return None
    words = rng.choice(found)
    tail = " ".join(words[-rng.randint(1, min(3, len(words) - 1)) :])
    mark = rng.choice(["{}. ", "- ", "* "])
    items = zip(numbers(1), cycle(other.split()), strict=False)
    return _endless((f"{mark.format(i)}{word} {tail}\n" for i, word in items), fits)


def _sentences(text: str) -> list[tuple[int, str]]:
    """Each sentence with the offset of its end; what follows the last end is one."""
    ends = [0, *sentence_ends(text), len(text)]
    return [(b, text[a:b].strip()) for a, b in pairwise(ends) if text[a:b].strip()]


def _endless(units: Iterable[str], fits: Fits) -> str:
    """These units, cut off where the token limit is."""
    text = ""
    for unit in units:
        text += unit
        if len(text) >= 64 and not fits(text):
            break
        if len(text) >= ENDLESS:
            return text[:ENDLESS].rstrip()
    fitting, most = 0, len(text)
    while fitting < most - 1:
        middle = (fitting + most) // 2
        if fits(text[:middle]):
            fitting = middle
        else:
            most = middle
    return text[:fitting].rstrip()


def alike(one: str, other: str) -> float:
    """Overlap coefficient of character bigrams, in [0, 1]."""
    pairs = [{text[i : i + 2] for i in range(len(text) - 1)} for text in (one, other)]
    return len(pairs[0] & pairs[1]) / max(1, min(map(len, pairs)))


MAKERS: dict[str, Callable[[RmRow, str, str, Fits, random.Random], str | None]] = {
    "loop": lambda row, best, other, fits, rng: loop(best, rng),
    "edited": lambda row, best, other, fits, rng: edited(best, rng),
    "stuck": lambda row, best, other, fits, rng: stuck(best, row.question, fits, rng),
    "count": lambda row, best, other, fits, rng: count(best, fits, rng),
    "list": lambda row, best, other, fits, rng: listed(best, other, fits, rng),
    "echo": lambda row, best, other, fits, rng: row.question,
    "cut": lambda row, best, other, fits, rng: cut(best, rng),
    "missing_eos": lambda row, best, other, fits, rng: cut(best, rng),
    "other": lambda row, best, other, fits, rng: other or None,
    "filler": lambda row, best, other, fits, rng: filler(best, other, rng),
    "empty": lambda row, best, other, fits, rng: "",
}
ENDLESS_KINDS = ("stuck", "count", "list")
SLIP = "slip"  # what SFT itself samples
# Ranked below all answers; others only below their original.
LAST = ("echo", "other", "empty", *ENDLESS_KINDS)


def make(
    row: RmRow, kind: str, rows: Sequence[RmRow], fits: Fits, rng: random.Random
) -> HardNegative | None:
    """A hard negative of this kind for this row.

    None if it cannot be made, is too long, or equals an answer of the group.
    """
    text = MAKERS[kind](row, row.best_answer, _other_answer(row, rows, rng), fits, rng)
    if text is None or any(same_text(text, answer) for answer in row.answers) or not fits(text):
        return None
    if kind in ENDLESS_KINDS and not text:
        return None
    ended = kind != "missing_eos" and (kind not in ENDLESS_KINDS or rng.random() < ENDED)
    return HardNegative(kind, row.best, text, ended)


def _other_answer(row: RmRow, rows: Sequence[RmRow], rng: random.Random) -> str:
    """The best answer to an unrelated question; empty if none is found."""
    mine = f"{row.question} {row.best_answer}"
    for _ in range(TRIES):
        other = rows[rng.randrange(len(rows))]
        answer = other.best_answer
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
    return {kind: found[kind] for kind in (*MAKERS, SLIP)}


def agrees(greedy: str, row: RmRow) -> bool:
    """Whether SFT's most likely answer is the best-ranked one: people and model know it."""
    return same_text(greedy, row.best_answer)


def slip(row: RmRow, sampled: Sequence[list[int]], codec: Codec) -> HardNegative | None:
    """The first of SFT's samples that is not the best answer: a near miss of its own making.

    Only for rows that it `agrees` on, for elsewhere a sample may be better than the best-ranked
    answer. None if all are the best answer.
    """
    best = row.best_answer
    for ids in sampled:
        text = codec.text(ids)
        if not same_text(text, best):
            return HardNegative(SLIP, row.best, text, ids[-1] == codec.eos_id, tuple(ids))
    return None
