"""Rows of any other data: sft, rm and ppo files of JSON Lines, CSV or Parquet, in usual shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.rlhf.ingest.files.entries import Entry
from stages.rlhf.ingest.files.streams import stream_rows
from stages.rlhf.ingest.files.tables import is_table, stream_table
from stages.rlhf.ingest.sources.items import Item, Part, labels
from stages.rlhf.ingest.sources.names import part_named
from stages.rlhf.ingest.sources.shapes import read_row

EXPECTED: dict[Part, str] = {
    part: f"{part}.jsonl, {part}.csv or {part}.parquet" for part in ("sft", "rm", "ppo")
}


def part_of(entry: Entry) -> Part | None:
    """The part that a file contains, by its name or the folder around it."""
    return part_named(entry.folders, entry.name)


def rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a file, streamed. Raises ValueError naming file and row."""
    return stream_table(entry, limit) if is_table(entry.name) else stream_rows(entry, limit)


def item(part: Part, row: Any, number: str, side: str | None, columns: Mapping[str, str]) -> Item:
    """A row as an Item; `number` is its id if it has none.

    `columns`: `data.columns`, names of this source's columns by ours.
    """
    if not isinstance(row, dict):
        return Item(part, number, row, side=side, fault=f"expected an object, found {row!r:.80}")
    renamed = row | {field: row[column] for field, column in columns.items() if column in row}
    name = renamed.get("id")
    return Item(
        part=part,
        id=number if name is None or name == "" else str(name),
        raw=row,
        category=renamed.get("category"),
        question_type=renamed.get("question_type"),
        side=side,
        **labels(renamed),
        **read_row(part, renamed),
    )
