"""Clean rows on disk between the two passes of preprocess, to bound memory."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from stages.rlhf.ingest.cleaning import Answer, Clean
from stages.rlhf.ingest.sources.items import Part
from stages.rlhf.ingest.splitting.splits import SIDES, TRAIN, Assignment, Keys

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, part TEXT, id TEXT, key TEXT, side INTEGER, pinned INTEGER,
    body TEXT
);
CREATE TABLE splits (
    key TEXT PRIMARY KEY, number INTEGER, side INTEGER, assigned INTEGER, several INTEGER
) WITHOUT ROWID;
"""
_BY_KEY = """
SELECT key, MAX(side), MIN(pinned), MAX((part = 'sft') * (side + 1)),
       MAX((part = 'rm') * (side + 1)), MAX((part = 'ppo') * (side + 1)),
       (SUM(part = 'sft') > 1) + 2 * (SUM(part = 'rm') > 1)
FROM rows GROUP BY key ORDER BY key
"""
_BY_SPLIT = """
SELECT rows.id, rows.key, rows.body, rows.side, splits.number, splits.assigned, splits.several
FROM rows JOIN splits ON splits.key = rows.key
WHERE rows.part = ? AND splits.side = ?
ORDER BY rows.id, rows.key, rows.number
"""
_BY_QUESTION = """
SELECT rows.id, rows.key, rows.body, rows.side, splits.number, splits.assigned, splits.several
FROM rows JOIN splits ON splits.key = rows.key
WHERE rows.part = 'rm' AND rows.key = ?
ORDER BY rows.id, rows.number
"""
# For each repeated id all rows but the first get a number; the order is that of their contents.
_RENAME_REPEATED = """
UPDATE rows SET id = rows.id || '#' || repeated.rank FROM (
    SELECT number, ROW_NUMBER() OVER (PARTITION BY part, id ORDER BY key, body, number) AS rank
    FROM rows WHERE (part, id) IN (SELECT part, id FROM rows GROUP BY part, id HAVING COUNT(*) > 1)
) AS repeated WHERE rows.number = repeated.number AND repeated.rank > 1
"""
_SEVERAL: Final[dict[Part, int]] = {"sft": 1, "rm": 2, "ppo": 0}  # bits of `several`


@dataclass(frozen=True)
class Spooled:
    """A clean row read back.

    `question`: index of its key; `fits`: whether its own side is the split of its question;
    `several`: whether its part has more rows of the question (for ppo unknown, False).
    """

    row: Clean
    question: int
    fits: bool
    several: bool


class Spool:
    """A table of rows, and a table of each question's split."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.executescript(_SCHEMA)
        self._several = np.zeros(0, dtype=np.uint8)  # per question, known with its key
        self.questions = 0  # distinct ones, known once splits are set
        self.renamed = 0  # rows whose id another row of the part had, known then too

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
        columns = np.frombuffer(bytes(flags), dtype=np.uint8).reshape(-1, 6).T
        named, fixed, sft, rm, ppo, self._several = columns
        return Keys(texts, named, fixed.astype(bool), sft, rm, ppo)

    def set_splits(self, keys: Keys, assignment: Assignment) -> None:
        """Store the split of each question."""
        self.questions = len(keys.texts)
        self._db.executemany(
            "INSERT INTO splits VALUES (?, ?, ?, ?, ?)",
            zip(
                keys.texts,
                range(len(keys.texts)),
                map(int, assignment.sides),
                map(int, assignment.assigned),
                map(int, self._several),
                strict=True,
            ),
        )
        self._db.execute("CREATE INDEX ordered ON rows (part, id, key, number)")
        if (self._several & _SEVERAL["rm"]).any():
            self._db.execute("CREATE INDEX groups ON rows (key) WHERE part = 'rm'")
        while (renamed := self._db.execute(_RENAME_REPEATED).rowcount) > 0:
            self.renamed = max(self.renamed, renamed)

    def split_of(self, key: str) -> str | None:
        """The split of a question, or None if no row contains it."""
        found = self._db.execute("SELECT side FROM splits WHERE key = ?", (key,)).fetchone()
        return SIDES[found[0]] if found else None

    def rows(self, part: Part, split: str) -> Iterator[Spooled]:
        """Rows of a part whose question is in a split, sorted by id, then key."""
        side = SIDES.index(split)
        for found in self._db.execute(_BY_SPLIT, (part, side)):
            yield _spooled(part, side, *found)

    def group(self, key: str, split: str, limit: int) -> list[Clean]:
        """The first rm rows of a question that fit its split, sorted by id."""
        side = SIDES.index(split)
        rows = self._db.execute(_BY_QUESTION, (key,))
        found = (_spooled("rm", side, *row) for row in rows)
        return list(islice((spooled.row for spooled in found if spooled.fits), limit))


def _spooled(
    part: Part,
    side: int,
    name: str,
    key: str,
    body: str,
    own: int,
    number: int,
    assigned: int,
    several: int,
) -> Spooled:
    question, answers, labels = json.loads(body)
    row = Clean(part, name, key, question, tuple(Answer(*a) for a in answers), labels, SIDES[own])
    fits = own == side or (own <= TRAIN and bool(assigned)) or (not own and side == TRAIN)
    return Spooled(row, number, fits, bool(several & _SEVERAL[part]))


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
