"""From a raw item to a clean row, or to the reason for its rejection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from stages.rlhf.ingest.sources.items import MISSING, Item, Part
from stages.rlhf.korean import clean, clean_line, has_placeholder, question_key, same_text

Reason = Literal[
    "malformed",
    "empty_question",
    "empty_answer",
    "answer_equals_question",
    "placeholder",
    "too_few_answers",
    "all_tied",
    "bad_rank",
    "duplicate_question",
    "leak",
    "judge_question",
    "too_long",
    "duplicate_answer",  # only for single answers of a group
]
SPLITS: Final = ("train", "validation", "test", "judge_train", "judge_test")


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


class Unusable(Exception):
    """A row is rejected for this reason; always caught within preprocess."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def clean_item(item: Item) -> tuple[Clean, list[Dropped]]:
    """The clean row, and the answers dropped from its group. Raises Unusable."""
    question = clean_line(_text(item.question))
    key = question_key(question)
    labels = {
        "category": _label(item.category, strict=False),
        "question_type": _label(item.question_type, strict=False),
        "kind": _label(item.kind),
        "must_contain": _label(item.must_contain),
    }
    answers = _answers(item)
    if item.split is not None and item.split not in SPLITS:
        raise Unusable("malformed")
    if item.part != "rm" and str(item.split).startswith("judge"):
        raise Unusable("malformed")
    if not key:
        raise Unusable("empty_question")
    if has_placeholder(question):
        raise Unusable("placeholder")
    dropped: list[Dropped] = []
    if item.part == "sft" and (reason := _flaw(answers[0].text, question)):
        raise Unusable(reason)
    if item.part == "rm":
        answers, dropped = settle(answers, [_flaw(answer.text, question) for answer in answers])
    side = item.split or ("test" if item.validation else None)
    # an id of invisible characters or lone surrogates is kept as its escape
    name = clean_line(item.id) or item.id.encode("ascii", "backslashreplace").decode()
    pinned = item.split is not None
    row = Clean(item.part, name, key, question, answers, labels, side, pinned)
    return row, dropped


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
    texts = [clean(_text(answer)) for answer in item.answers]
    if item.part == "ppo":
        return ()
    if item.part == "sft":
        return (Answer(texts[0], 1),)
    if not texts:
        raise Unusable("malformed")
    defects = [None] * len(texts) if item.defects is None else item.defects
    if not isinstance(defects, list) or len(defects) != len(texts):
        raise Unusable("malformed")
    if item.defects is not None:  # "" where an answer has no defect
        defects = [_label(defect) or "" for defect in defects]
    if len(item.ranks) != len(texts):
        raise Unusable("bad_rank")
    ranks = [_rank(rank, item.first_rank, len(texts)) for rank in item.ranks]
    return tuple(
        Answer(text, rank, defect) for text, rank, defect in zip(texts, ranks, defects, strict=True)
    )


def _text(value: Any) -> str:
    """A text of the file; null counts as empty."""
    if value is None:
        return ""
    if not isinstance(value, str):  # MISSING too
        raise Unusable("malformed")
    return value


def _label(value: Any, strict: bool = True) -> str | None:
    """A short text or None. A category of another type occurs and is dropped, if not `strict`."""
    if value is None or value is MISSING:
        return None
    if not isinstance(value, str):
        if strict:
            raise Unusable("malformed")
        return None
    return clean_line(value) or None


def _rank(value: Any, first: int, count: int) -> float:
    """A rank as a number from 1 to `count`. Ints, floats and numeric strings occur."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unusable("bad_rank")
    try:
        rank = float(value) - first + 1
    except (ValueError, OverflowError) as error:
        raise Unusable("bad_rank") from error
    if not 1 <= rank <= count:  # NaN too
        raise Unusable("bad_rank")
    return rank


def _flaw(answer: str, question: str) -> Reason | None:
    """What is wrong with a single answer, if anything."""
    if not question_key(answer):
        return "empty_answer"
    if same_text(answer, question):
        return "answer_equals_question"
    if has_placeholder(answer):
        return "placeholder"
    return None
