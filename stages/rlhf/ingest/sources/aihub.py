"""AI-Hub 71748: one JSON object per part, rows under `data_info`; the sample uses it too."""

import re
from collections.abc import Iterator
from typing import Any

from stages.rlhf.ingest.files.entries import Entry
from stages.rlhf.ingest.files.streams import stream_json
from stages.rlhf.ingest.sources.items import MISSING, Item, Part, labels

EXPECTED: dict[Part, str] = {
    "sft": "SFTlabel.json or SFT.json",
    "rm": "RMlabel.json or RM.json",
    "ppo": "PPOdata.json or PPO.json",
}
_NAMES: dict[str, Part] = {
    "sftlabel.json": "sft",
    "sft.json": "sft",
    "rmlabel.json": "rm",
    "rm.json": "rm",
    "ppodata.json": "ppo",
    "ppo.json": "ppo",
}
_ANSWER = re.compile(r"answer(\d{1,9})")


def part_of(entry: Entry) -> Part | None:
    """The part that a file contains, by its base name."""
    return _NAMES.get(entry.name.lower())


def rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a file, streamed. Raises ValueError naming file and row."""
    return stream_json(entry, "data_info", limit)


def item(part: Part, row: Any, number: str, side: str | None) -> Item:
    """A row as an Item; `number` is its id if it has none."""
    if not isinstance(row, dict):
        return Item(part, number, row, side=side)
    answers: tuple[Any, ...] = ()
    ranks: tuple[Any, ...] = ()
    if part == "sft":
        answers = (_value(row.get("answer"), "contents"),)
    elif part == "rm":
        found = sorted((int(m[1]), key) for key in row if (m := _ANSWER.fullmatch(key)))
        answers = tuple(_value(row[key], "contents") for _, key in found)
        ranks = tuple(_value(row[key], "ranking") for _, key in found)
    category = row.get("data_category")
    return Item(
        part=part,
        id=str(row.get("data_id") or number),
        raw=row,
        question=row.get("question", MISSING),
        answers=answers,
        ranks=ranks,
        category=category.get("middle") if isinstance(category, dict) else None,
        question_type=row.get("question_type"),
        side=side,
        **labels(row),
    )


def _value(answer: Any, key: str) -> Any:
    return answer.get(key, MISSING) if isinstance(answer, dict) else MISSING
