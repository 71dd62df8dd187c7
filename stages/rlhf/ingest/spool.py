"""Clean rows on disk between the two passes of preprocess, to bound memory."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.rlhf.ingest.cleaning import Answer, Clean
from stages.rlhf.ingest.sources.items import Part
from stages.rlhf.ingest.splits import SIDES, TRAIN, Assignment, Keys

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, part TEXT, id TEXT, key TEXT, side INTEGER, pinned INTEGER,
    body TEXT
);
CREATE TABLE splits (
    key TEXT PRIMARY KEY, number INTEGER, side INTEGER, assigned INTEGER
) WITHOUT ROWID;
"""
_BY_KEY = """
SELECT key, MAX(side), MIN(pinned), MAX(part = 'sft'), MAX(part = 'rm'), MAX(part = 'ppo')
FROM rows GROUP BY key ORDER BY key
"""
_BY_SPLIT = """
SELECT rows.id, rows.key, rows.body, rows.side, splits.number, splits.assigned
FROM rows JOIN splits ON splits.key = rows.key
WHERE rows.part = ? AND splits.side = ?
ORDER BY rows.id, rows.key, rows.number
"""


@dataclass(frozen=True)
class Spooled:
    """A clean row read back.

    `question`: index of its key; `fits`: whether its own side is the split of its question.
    """

    row: Clean
    question: int
    fits: bool


class Spool:
    """A table of rows, and a table of each question's split."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.executescript(_SCHEMA)
        self.questions = 0  # distinct ones, known once splits are set

    def add(self, row: Clean) -> None:
        """Store a row."""
        body = [row.question, [[a.text, a.rank, a.defect] for a in row.answers], row.labels]
        self._db.execute(
            "INSERT INTO rows (part, id, key, side, pinned, body) VALUES (?, ?, ?, ?, ?, ?)",
            (
                row.part,
                row.id,
                row.key,
                SIDES.index(row.side),
                row.pinned,
                json.dumps(body, ensure_ascii=False),
            ),
        )

    def keys(self) -> Keys:
        """All distinct question keys, sorted by code point."""
        texts: list[str] = []
        flags = bytearray()
        for key, *values in self._db.execute(_BY_KEY):
            texts.append(key)
            flags += bytes(values)
        columns = np.frombuffer(bytes(flags), dtype=np.uint8).reshape(-1, 5).T
        named, fixed, sft, rm, ppo = columns
        return Keys(texts, named, *(column.astype(bool) for column in (fixed, sft, rm, ppo)))

    def set_splits(self, keys: Keys, assignment: Assignment) -> None:
        """Store the split of each question."""
        self.questions = len(keys.texts)
        self._db.executemany(
            "INSERT INTO splits VALUES (?, ?, ?, ?)",
            zip(
                keys.texts,
                range(len(keys.texts)),
                map(int, assignment.sides),
                map(int, assignment.assigned),
                strict=True,
            ),
        )
        self._db.execute("CREATE INDEX ordered ON rows (part, id, key, number)")

    def split_of(self, key: str) -> str | None:
        """The split of a question, or None if no row contains it."""
        found = self._db.execute("SELECT side FROM splits WHERE key = ?", (key,)).fetchone()
        return SIDES[found[0]] if found else None

    def rows(self, part: Part, split: str) -> Iterator[Spooled]:
        """Rows of a part whose question is in a split, sorted by id, then key."""
        side = SIDES.index(split)
        for name, key, body, own, number, assigned in self._db.execute(_BY_SPLIT, (part, side)):
            question, answers, labels = json.loads(body)
            row = Clean(
                part, name, key, question, tuple(Answer(*a) for a in answers), labels, SIDES[own]
            )
            fits = own == side or (own <= TRAIN and bool(assigned)) or (not own and side == TRAIN)
            yield Spooled(row, number, fits)


@contextmanager
def open_spool(folder: Path) -> Iterator[Spool]:
    """A spool in a temporary file of the folder."""
    path = folder / "spool.sqlite"
    path.unlink(missing_ok=True)
    # tokenizers iterates over its training texts in another thread, while this one waits
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")
        yield Spool(connection)
    finally:
        connection.close()
        path.unlink(missing_ok=True)
