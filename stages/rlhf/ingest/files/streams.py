"""JSON arrays and JSON Lines, read row by row in bounded memory, for any input.

Both are treated alike. What Python's json can parse is a row: NaN, lone surrogates and integers of
any size are for cleaning to judge. A later row that is not JSON, not UTF-8 or nested deeper than
DEPTH is yielded as its text, if it is clear where it ends. A first row that is none of a format, a
truncated file and a row of more than ROW_BYTES end with a message: a line of 10 GB does not exhaust
memory.
"""

import codecs
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from stages.rlhf.ingest.files.document import (
    DECODER,
    DEPTH,
    ROW_BYTES,
    Document,
    is_deep,
    one_line,
)
from stages.rlhf.ingest.files.entries import Entry

_START = 1 << 14  # bytes, within which a file says what it is
_FORM = "UTF-8, a JSON object on each line or one array of them, [rows]"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)


def stream_json(entry: Entry, key: str | None, limit: int | None) -> Iterator[Any]:
    """Rows of the array under `key` of a JSON object, or of a top-level array if `key` is None.

    Reads to the end of the file, so that truncation is detected, unless `limit` rows come first.
    Raises ValueError naming file, row and byte of a row that is too large or whose end is unclear,
    of a first row or other value that is not JSON, and naming a file without rows.
    """
    with reading(entry) as raw:
        text = Document(raw, entry.where)
        for row in text.rows() if key is None else text.rows_under(key):
            yield row
            if text.count == limit:
                return
        if text.peek():
            raise text.error("more text after its end")
    if text.count == 0:
        raise ValueError(f"{entry.where}: no rows; {key or 'the array'} is empty")


def stream_rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a JSON Lines file, or of a JSON array whatever its name.

    An invalid line is yielded as its text, except for a first one and a last one without line
    break: then the file has another format or is truncated.
    Raises ValueError naming file and row.
    """
    with reading(entry) as raw:
        start = raw.read(_START).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        yield from stream_json(entry, None, limit)
        return
    count = 0
    for number, line, ended in _lines(entry):
        if limit is not None and count >= limit:
            return
        try:
            row = _parsed(line)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
            if count == 0 or not ended:
                state = "truncated" if count else "not JSON"
                raise ValueError(
                    f"{entry.where}, line {number}: {state}: {one_line(error)}; expected {_FORM}"
                ) from error
            row = line.decode("utf-8", errors="replace")
        count += 1
        yield row
    if count == 0:
        raise ValueError(f"{entry.where}: no rows; expected {_FORM}")


def _parsed(line: bytes) -> Any:
    """A line's value. Raises ValueError if it is not JSON, or nested too deep."""
    try:
        row = DECODER.decode(line.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEPTH}") from error
    if line.count(b"[") + line.count(b"{") > DEPTH and is_deep(row):
        raise ValueError(f"nested deeper than {DEPTH}")
    return row


@contextmanager
def reading(entry: Entry) -> Iterator[IO[bytes]]:
    """The bytes of a file. Raises ValueError naming it if it turns out to be damaged."""
    try:
        with entry.open() as raw:
            yield raw
    except _DAMAGED as error:
        raise ValueError(f"{entry.where}: unreadable: {one_line(error)}") from error


def _lines(entry: Entry) -> Iterator[tuple[int, bytes, bool]]:
    """Non-empty lines: number, bytes, and whether a line break ends the line."""
    with reading(entry) as raw:
        for number, line in enumerate(iter(lambda: raw.readline(ROW_BYTES + 1), b""), 1):
            if len(line) > ROW_BYTES:
                raise ValueError(
                    f"{entry.where}, line {number}: more than {ROW_BYTES} bytes, the limit per row"
                )
            if stripped := line.strip():  # _parsed removes a byte order mark
                yield number, stripped, line.endswith(b"\n")
