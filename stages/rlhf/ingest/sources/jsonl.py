"""Plain JSON Lines for any other data: sft.jsonl, rm.jsonl and ppo.jsonl."""

from collections.abc import Iterator
from typing import Any

from stages.rlhf.ingest.sources.files import Entry
from stages.rlhf.ingest.sources.items import MISSING, Item, Part, labels
from stages.rlhf.ingest.sources.streams import stream_rows

EXPECTED: dict[Part, str] = {"sft": "sft.jsonl", "rm": "rm.jsonl", "ppo": "ppo.jsonl"}
_NAMES: dict[str, Part] = {"sft.jsonl": "sft", "rm.jsonl": "rm", "ppo.jsonl": "ppo"}


def part_of(name: str) -> Part | None:
    """The part that a file of this base name contains."""
    return _NAMES.get(name.lower())


def rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a file, streamed. Raises ValueError naming file and row."""
    return stream_rows(entry, limit)


def item(part: Part, row: Any, number: str, validation: bool) -> Item:
    """A row as an Item; `number` is its id if it has none.

    RM rows are {question, answers, ranks} or {prompt, chosen, rejected}, a group of two.
    """
    if not isinstance(row, dict):
        return Item(part, number, row, validation=validation)
    answers: tuple[Any, ...] = ()
    ranks: tuple[Any, ...] = ()
    if part == "sft":
        answers = (row.get("answer", MISSING),)
    elif part == "rm" and "chosen" in row and "rejected" in row:
        answers, ranks = (row["chosen"], row["rejected"]), (1, 2)
    elif part == "rm":
        answers, ranks = _listed(row.get("answers")), _listed(row.get("ranks"))
    return Item(
        part=part,
        id=str(row.get("id") or number),
        raw=row,
        question=row.get("question", row.get("prompt", MISSING)),
        answers=answers,
        ranks=ranks,
        category=row.get("category"),
        question_type=row.get("question_type"),
        validation=validation,
        **labels(row),
    )


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else ()
