"""Readers of the supported formats; each yields raw items one at a time."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.rlhf.files import RUN
from stages.rlhf.ingest.files.entries import Entry, list_entries
from stages.rlhf.ingest.sources import aihub, jsonl, kochatgpt
from stages.rlhf.ingest.sources.items import PARTS, Item, Part
from stages.rlhf.ingest.sources.names import is_data, split_named

Source = Literal["sample", "aihub", "kochatgpt", "jsonl"]

_FORMATS = {"sample": aihub, "aihub": aihub, "kochatgpt": kochatgpt, "jsonl": jsonl}
_ORDER = (None, "train", "judge_train", "judge_test", "validation", "test")
_CORPUS = ("corpus.jsonl", "corpus.json", "corpus.csv", "corpus.tsv", "corpus.parquet")


@dataclass(frozen=True)
class _File:
    """A file of the source, and the split that its name or folders stand for."""

    entry: Entry
    side: str | None

    @property
    def path(self) -> str:
        """Its folders and name below `data.path`."""
        return "/".join(filter(None, (*self.entry.folders, self.entry.name)))


class Reader:
    """A source on disk: files located and checked up front, rows read part by part.

    `shapes`: rows read so far by part, the keys they were read as, and path; `used`: those columns
    of `data.columns` that some row has; `unread`: paths of data files that belong to no part.
    """

    def __init__(
        self,
        source: Source,
        path: Path,
        max_items: int | None,
        columns: Mapping[Any, str] | None = None,
    ) -> None:
        """Locate the files of the three parts.

        Raises ValueError if the path does not exist, is damaged or does not match the source.
        """
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder (data.path, for source {source})")
        entries = list(list_entries(path))
        self._format = _FORMATS[source]
        files: dict[Part, list[_File]] = {part: [] for part in PARTS}
        for entry in entries:
            if part := self._format.part_of(entry):
                files[part].append(_File(entry, split_named(entry.folders, entry.name)))
        self._files = files if self._format is not aihub else _two_parted(files)
        read = {file.entry for group in files.values() for file in group}
        self._corpus = [
            entry
            for entry in entries
            if entry.name in _CORPUS and split_named(entry.folders, entry.name) in (None, "train")
        ]
        read.update(self._corpus)
        self.unread = [
            _File(entry, None).path
            for entry in entries
            if is_data(entry.name) and entry not in read and entry.name != RUN
        ]
        self._max_items = max_items
        self._columns = columns or {}
        self.shapes: Counter[tuple[Part, tuple[str, ...], str]] = Counter()
        self.used: set[str] = set()
        self._position: tuple[_File, int] | None = None
        missing = [part for part in PARTS if not self._files[part]]
        if missing:
            raise ValueError(_misfit(source, path, missing, entries))

    def items(self, part: Part) -> Iterator[Item]:
        """Items of a part, training files first; at most `max_items` per side.

        Raises ValueError naming file and row if a file is damaged or has no rows.
        """
        number = 0
        for side in _ORDER:
            left = self._max_items
            for file in self._files[part]:
                if file.side != side or left == 0:
                    continue
                for row_number, row in enumerate(self._format.rows(file.entry, left), 1):
                    number += 1
                    self._position = file, row_number
                    if left is not None:
                        left -= 1
                    yield self._item(part, row, f"{part}-{number:08d}", file)

    def _item(self, part: Part, row: Any, number: str, file: _File) -> Item:
        if self._format is not jsonl:
            return self._format.item(part, row, number, file.side)
        if self._columns and isinstance(row, dict):
            self.used.update(column for column in self._columns.values() if column in row)
        item = jsonl.item(part, row, number, file.side, self._columns)
        self.shapes[part, item.shape, file.path] += 1
        return item

    @property
    def position(self) -> str:
        """File and number of the row read last."""
        if self._position is None:
            return "no row"
        file, number = self._position
        return f"{file.path} row {number}"

    @property
    def sides(self) -> dict[str, str]:
        """Folder or file -> the split it stands for, of those files that are named for one."""
        return {file.path: file.side for part in PARTS for file in self._files[part] if file.side}

    @property
    def has_corpus(self) -> bool:
        """Whether the source has a plain-text corpus of its own."""
        return bool(self._corpus)

    def corpus(self) -> Iterator[Any]:
        """Raw rows of the corpus, at most `max_items`."""
        for entry in self._corpus:
            yield from jsonl.rows(entry, self._max_items)


def _two_parted(files: dict[Part, list[_File]]) -> dict[Part, list[_File]]:
    """AI-Hub publishes Training and Validation: unless there is a test folder too, that is test."""
    if any(file.side == "test" for group in files.values() for file in group):
        return files
    return {
        part: [
            _File(file.entry, "test" if file.side == "validation" else file.side) for file in group
        ]
        for part, group in files.items()
    }


def _misfit(source: Source, path: Path, missing: list[Part], entries: list[Entry]) -> str:
    expected = ", ".join(f"{_FORMATS[source].EXPECTED[part]} ({part})" for part in missing)
    names = sorted({entry.name for entry in entries})
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    others = [
        name
        for name, shape in _FORMATS.items()
        if shape is not _FORMATS[source] and any(shape.part_of(entry) for entry in entries)
    ]
    hint = f"; this looks like data.source: {others[-1]}" if others else ""
    return (
        f"{path}: data.source {source} expects {expected}, which is missing;"
        f" found {found or 'no file'}{hint}"
    )
