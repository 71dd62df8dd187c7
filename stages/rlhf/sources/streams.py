"""JSON arrays and JSON lines, read row by row in bounded memory."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import ijson
from ijson.common import JSONError

from stages.rlhf.sources.files import Entry

_BOM = b"\xef\xbb\xbf"
_BUFFER = 16384  # bytes; an error is placed within one
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)


def stream_json(entry: Entry, key: str | None, limit: int | None) -> Iterator[Any]:
    """Rows of the array under `key` of a JSON object, or of a JSON array where `key` is None.

    Reads the file to its end, so that what is cut short is found, unless `limit` ends it before.
    Raises ValueError naming file, row and byte of what is not JSON, and a file without rows.
    """
    count = 0
    with _reading(entry) as raw:
        file = _Counted(raw)
        rows = ijson.items(file, f"{key}.item" if key else "item", buf_size=_BUFFER, use_float=True)
        while limit is None or count < limit:
            try:
                row = next(rows)
            except StopIteration:
                break
            except (JSONError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{entry.where}: not JSON, or cut short, behind row {count}, before byte"
                    f" {file.count}: {_one_line(error)}"
                ) from error
            count += 1
            yield row
    if count == 0:
        raise ValueError(_why_no_rows(entry, key))


def stream_rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a file of JSON lines, or of a JSON array in spite of its name.

    A line that is not JSON is yielded as its text, except in the first or last row, which mean
    that the file is something else or is cut short.
    Raises ValueError naming file and row.
    """
    with _reading(entry) as raw:
        start = _Counted(raw).read(_BUFFER).lstrip()
    if start.startswith(b"["):
        yield from stream_json(entry, None, limit)
        return
    count = 0
    for number, line, last in _lines(entry):
        if limit is not None and count >= limit:
            return
        try:
            row = json.loads(line)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
            if count == 0 or last:
                state = "cut short" if count else "not JSON"
                raise ValueError(
                    f"{entry.where}, line {number}: {state}: {_one_line(error)};"
                    " a JSON object on each line, or one JSON array, was expected"
                ) from error
            row = line.decode("utf-8", errors="replace")
        count += 1
        yield row
    if count == 0:
        raise ValueError(f"{entry.where}: no rows; a JSON object on each line was expected")


@contextmanager
def _reading(entry: Entry) -> Iterator[IO[bytes]]:
    try:
        with entry.open() as raw:
            yield raw
    except _DAMAGED as error:
        raise ValueError(f"{entry.where}: cannot be read: {_one_line(error)}") from error


class _Counted:
    """A file without its byte order mark, and the number of bytes read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        chunk = self._file.read(size)
        first = self.count == 0
        self.count += len(chunk)
        if first and chunk.startswith(_BOM):
            return chunk[len(_BOM) :] or self.read(size)
        return chunk


def _lines(entry: Entry) -> Iterator[tuple[int, bytes, bool]]:
    """Lines that hold something: number, bytes, and whether the line is the last."""
    held: tuple[int, bytes] | None = None
    with _reading(entry) as raw:
        for number, line in enumerate(raw, 1):
            stripped = line.strip()  # json.loads takes a byte order mark off
            if not stripped:
                continue
            if held is not None:
                yield *held, False
            held = (number, stripped)
    if held is not None:
        yield *held, True


def _why_no_rows(entry: Entry, key: str | None) -> str:
    if key is None:
        return f"{entry.where}: no rows; the array is empty"
    with _reading(entry) as raw:
        for prefix, event, _ in ijson.parse(_Counted(raw), buf_size=_BUFFER):
            if prefix == key and event != "start_array":
                return f"{entry.where}: {key} is a {event.removeprefix('start_')}, not an array"
            if prefix == key:
                return f"{entry.where}: no rows; {key} is empty"
    return f'{entry.where}: no {key}; {{"{key}": [rows]}} was expected'


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
