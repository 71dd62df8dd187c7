"""Readers of the supported formats; each yields raw items one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stages.rlhf.ingest.sources import aihub, jsonl, kochatgpt
from stages.rlhf.ingest.sources.files import Entry, list_entries
from stages.rlhf.ingest.sources.items import PARTS, Item, Part
from stages.rlhf.ingest.sources.streams import stream_rows

Source = Literal["sample", "aihub", "kochatgpt", "jsonl"]

_FORMATS = {"sample": aihub, "aihub": aihub, "kochatgpt": kochatgpt, "jsonl": jsonl}


class Reader:
    """A source on disk: files located and checked up front, rows read part by part."""

    def __init__(self, source: Source, path: Path, max_items: int | None) -> None:
        """Locate the files of the three parts.

        Raises ValueError if the path does not exist, is damaged or does not match the source.
        """
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder (data.path, for source {source})")
        entries = list(list_entries(path))
        self._format = _FORMATS[source]
        self._files: dict[Part, list[Entry]] = {
            part: [entry for entry in entries if self._format.part_of(entry.name) == part]
            for part in PARTS
        }
        self._corpus = [e for e in entries if e.name == "corpus.jsonl" and not e.validation]
        self._max_items = max_items
        missing = [part for part in PARTS if not self._files[part]]
        if missing:
            raise ValueError(_misfit(source, path, missing, entries))

    def items(self, part: Part) -> Iterator[Item]:
        """Items of a part, training files first; at most `max_items` per side.

        Raises ValueError naming file and row if a file is damaged or has no rows.
        """
        number = 0
        for validation in (False, True):
            left = self._max_items
            for entry in self._files[part]:
                if entry.validation != validation or left == 0:
                    continue
                for row in self._format.rows(entry, left):
                    number += 1
                    if left is not None:
                        left -= 1
                    yield self._format.item(part, row, f"{part}-{number:08d}", validation)

    @property
    def has_corpus(self) -> bool:
        """Whether the source has a plain-text corpus of its own."""
        return bool(self._corpus)

    def corpus(self) -> Iterator[Any]:
        """Raw rows of corpus.jsonl, at most `max_items`."""
        for entry in self._corpus:
            yield from stream_rows(entry, self._max_items)


def _misfit(source: Source, path: Path, missing: list[Part], entries: list[Entry]) -> str:
    expected = ", ".join(f"{_FORMATS[source].EXPECTED[part]} ({part})" for part in missing)
    names = sorted({entry.name for entry in entries})
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    others = [
        name
        for name, shape in _FORMATS.items()
        if shape is not _FORMATS[source] and any(shape.part_of(entry.name) for entry in entries)
    ]
    hint = f"; this looks like data.source: {others[-1]}" if others else ""
    return (
        f"{path}: data.source {source} expects {expected}, which is missing;"
        f" found {found or 'no file'}{hint}"
    )
