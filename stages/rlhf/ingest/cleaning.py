"""From a raw item to a clean row, or to the reason for its rejection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from stages.rlhf.chat import declines
from stages.rlhf.ingest.sources.items import MISSING, Item, Part
from stages.rlhf.ingest.sources.names import WORDS, known_split
from stages.rlhf.keys import is_blank, question_key
from stages.rlhf.korean import clean, clean_line, has_placeholder, same_text

Reason = Literal[
    "malformed",
    "unknown_split",
    "empty_question",
    "empty_answer",
    "answer_equals_question",
    "placeholder",
    "declines",
    "too_few_answers",
    "all_tied",
    "bad_rank",
    "duplicate_question",
    "leak",
    "judge_question",
    "contradicted",
    "too_long",
    "duplicate_answer",  # this and the next only for single answers of a group
    "no_order",
]
_JUDGE: Final = ("judge_train", "judge_test")


@dataclass(frozen=True)
class Answer:
    """One answer of a group; rank 1 = best, equal ranks are ties."""

    text: str
    rank: float
    defect: str | None = None


@dataclass(frozen=True)
class Clean:
    """A row that passed every check that needs no other row. `answers`: 0 (ppo), 1 (sft) or K.

    `side`: the split the source assigns to it; `pinned`: assigned by the row's own `split` key.
    """

    part: Part
    id: str
    key: str
    question: str
    answers: tuple[Answer, ...]
    labels: dict[str, str | None]
    side: str | None
    pinned: bool = False


@dataclass(frozen=True)
class Dropped:
    """An answer removed from a group that is kept."""

    reason: Reason
    answer: Answer


@dataclass(frozen=True)
class Cleaned:
    """A clean row, the answers dropped from its group, and the keys of it that are not used."""

    row: Clean
    dropped: tuple[Dropped, ...] = ()
    ignored: tuple[str, ...] = ()


class Unusable(Exception):
    """A row is rejected for this reason; `detail`: what was found, for people.

    Always caught within preprocess.
    """

    def __init__(self, reason: Reason, detail: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def clean_item(item: Item) -> Cleaned:
    """The clean row. Raises Unusable."""
    if item.fault:
        raise Unusable("malformed", item.fault)
    if _is_number(item.question):
        raise Unusable("malformed", f"question is {item.question!r:.60}; expected a text")
    question = clean_line(_text(item.question, "question"))
    key = question_key(question)
    answers = _answers(item)
    split = _split(item)
    if not key:
        raise Unusable("empty_question")
    if has_placeholder(question):
        raise Unusable("placeholder")
    dropped: list[Dropped] = []
    if item.part == "sft" and (reason := _flaw(answers[0].text, question)):
        raise Unusable(reason)
    if item.part == "rm":
        answers, dropped = settle(answers, [_flaw(answer.text, question) for answer in answers])
    labels, ignored = _labels(item)
    # an id of invisible characters or lone surrogates is kept as its escape
    name = clean_line(item.id) or item.id.encode("ascii", "backslashreplace").decode()
    row = Clean(
        item.part, name, key, question, answers, labels, split or item.side, split is not None
    )
    return Cleaned(row, tuple(dropped), (*item.ignored, *ignored))


def _split(item: Item) -> str | None:
    """The split that the row itself names."""
    if item.split is None or item.split == "":
        return None
    split = known_split(item.split) if isinstance(item.split, str) else None
    if split is None:
        known = ", ".join(word for words in WORDS.values() for word in words)
        raise Unusable("unknown_split", f"split is {item.split!r:.60}; known are {known}")
    if item.part != "rm" and split in _JUDGE:
        raise Unusable("unknown_split", f"split {split} is for rm rows only")
    return split


def settle(
    answers: tuple[Answer, ...], flaws: Sequence[Reason | None]
) -> tuple[tuple[Answer, ...], list[Dropped]]:
    """A group without flawed and repeated answers; ranks become 1, 2, …, order and ties kept.

    `flaws`: what is wrong with each answer, or None.

    Of identical answers the best-ranked is kept. Raises Unusable if fewer than two distinct answers
    remain, or all of them tie.
    """
    dropped = []
    kept: list[Answer] = []
    for answer, reason in zip(answers, flaws, strict=True):
        if reason:
            dropped.append(Dropped(reason, answer))
        else:
            kept.append(answer)
    best: dict[str, int] = {}
    for index, answer in enumerate(kept):
        if answer.text not in best or answer.rank < kept[best[answer.text]].rank:
            best[answer.text] = index
    dropped += [
        Dropped("duplicate_answer", answer)
        for index, answer in enumerate(kept)
        if best[answer.text] != index
    ]
    kept = [answer for index, answer in enumerate(kept) if best[answer.text] == index]
    if len(kept) < 2:
        raise Unusable("too_few_answers")
    levels = {rank: n for n, rank in enumerate(sorted({answer.rank for answer in kept}), 1)}
    if len(levels) == 1:
        raise Unusable("all_tied")
    return tuple(
        Answer(answer.text, levels[answer.rank], answer.defect) for answer in kept
    ), dropped


def _answers(item: Item) -> tuple[Answer, ...]:
    if item.part == "ppo":
        return ()
    texts = [clean(_text(answer, "an answer")) for answer in item.answers]
    if item.part == "sft":
        return (Answer(texts[0], 1),)
    if not texts:
        raise Unusable("malformed", "no answers")
    if len(item.ranks) != len(texts):
        word = "scores" if item.scored else "ranks"
        raise Unusable("bad_rank", f"{len(item.ranks)} {word} for {len(texts)} answers")
    defects: Sequence[str | None] = _defects(item) or [None] * len(texts)
    ranks = [_rank(value, item) for value in item.ranks]
    return tuple(
        Answer(text, rank, defect) for text, rank, defect in zip(texts, ranks, defects, strict=True)
    )


def _text(value: Any, what: str) -> str:
    """A text of the file; null counts as empty, a number is its digits."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if value is MISSING:
        raise Unusable("malformed", f"no key {what}")
    if not _is_number(value):
        raise Unusable("malformed", f"{what} is {value!r:.60}; expected a text")
    return str(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _labels(item: Item) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """The row's labels, and the names of those of another type, which are not used."""
    values = {
        "category": item.category,
        "question_type": item.question_type,
        "kind": item.kind,
        "must_contain": item.must_contain,
    }
    labels: dict[str, str | None] = {}
    ignored = []
    for name, value in values.items():
        text = str(value) if name == "must_contain" and _is_number(value) else value
        labels[name] = (clean_line(text) or None) if isinstance(text, str) else None
        if text is not None and text is not MISSING and not isinstance(text, str):
            ignored.append(name)
    if item.part == "rm" and item.defects is not None and _defects(item) is None:
        ignored.append("defects")
    return labels, tuple(ignored)


def _defects(item: Item) -> list[str] | None:
    """What is wrong with each answer, "" where nothing; None if the row does not say."""
    found = item.defects
    if not isinstance(found, list) or len(found) != len(item.answers):
        return None
    if any(defect is not None and not isinstance(defect, str) for defect in found):
        return None
    return [clean_line(defect or "") for defect in found]


def _rank(value: Any, item: Item) -> float:
    """A rank as a number from 1 to K, or a score as its negative. Numeric strings occur."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    count = len(item.answers)
    if item.scored and math.isfinite(number):
        return -number
    rank = number - item.first_rank + 1
    if item.scored or not 1 <= rank <= count:  # NaN too
        raise Unusable("bad_rank", _ranks_expected(item, count))
    return rank


def _ranks_expected(item: Item, count: int) -> str:
    found = f"[{', '.join(f'{value!r:.20}' for value in item.ranks[:12])}]"
    if item.scored:
        return f"scores {found:.200}: expected a number for each answer"
    best, worst = item.first_rank, item.first_rank + count - 1
    if sorted(map(str, item.ranks)) == sorted(str(best - 1 + n) for n in range(count)):
        return f"ranks {found:.200}: they begin at {best - 1}; expected {best} (best) to {worst}"
    return (
        f"ranks {found:.200}: expected {best} (best) to {worst};"
        " scores, where the highest is best, go under the key scores"
    )


def _flaw(answer: str, question: str) -> Reason | None:
    """What is wrong with a single answer, if anything."""
    if is_blank(answer):
        return "empty_answer"
    if same_text(answer, question):
        return "answer_equals_question"
    if has_placeholder(answer):
        return "placeholder"
    if declines(answer):  # of a bot that was shown passages; here none are
        return "declines"
    return None
