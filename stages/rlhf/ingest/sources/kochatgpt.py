"""KoChatGPT: three .jsonl files, each in fact a JSON array, or true JSON Lines."""

import re
from collections.abc import Iterator
from typing import Any

from stages.rlhf.ingest.files.entries import Entry
from stages.rlhf.ingest.files.streams import stream_rows
from stages.rlhf.ingest.sources.items import MISSING, Item, Part

EXPECTED: dict[Part, str] = {
    "sft": "kochatgpt_1_SFT.jsonl",
    "rm": "kochatgpt_2_RM.jsonl",
    "ppo": "kochatgpt_3_PPO.jsonl",
}
_NAME = re.compile(r"kochatgpt_(1_sft|2_rm|3_ppo)\.jsonl?", re.IGNORECASE)
_PARTS: dict[str, Part] = {"1_sft": "sft", "2_rm": "rm", "3_ppo": "ppo"}
_COMPLETION = re.compile(r"completion_(\d{1,9})")


def part_of(entry: Entry) -> Part | None:
    """The part that a file contains, by its base name."""
    match = _NAME.fullmatch(entry.name)
    return _PARTS[match[1].lower()] if match else None


def rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a file, streamed. Raises ValueError naming file and row."""
    return stream_rows(entry, limit)


def item(part: Part, row: Any, number: str, side: str | None) -> Item:
    """A row as an Item.

    ranking[i] is the RANK of completion_i, 0 = best: its own notebook compares ranking[0] with
    ranking[1]. Reading it as an ordering of indices gets [1, 2, 0] and [2, 0, 1] wrong.
    """
    if not isinstance(row, dict):
        return Item(part, number, row, side=side)
    answers: tuple[Any, ...] = ()
    ranks: tuple[Any, ...] = ()
    if part == "sft":
        answers = (row.get("completion", MISSING),)
    elif part == "rm":
        found = sorted((int(m[1]), key) for key in row if (m := _COMPLETION.fullmatch(key)))
        answers = tuple(row[key] for _, key in found)
        ranking = row.get("ranking")
        ranks = tuple(ranking) if isinstance(ranking, list) else ()
    return Item(
        part=part,
        id=number,
        raw=row,
        question=row.get("prompt", MISSING),
        answers=answers,
        ranks=ranks,
        first_rank=0,
        side=side,
    )
