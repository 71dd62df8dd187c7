"""JSON arrays and JSON Lines, read row by row in bounded memory, for any input.

No row may be longer than ROW_BYTES or nest deeper than DEPTH: a line of 10 GB fails with a message
instead of exhausting memory.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import ijson
from ijson.common import JSONError, ObjectBuilder

from stages.rlhf.ingest.sources.files import Entry

ROW_BYTES: Final = 1 << 20  # of one row; AI-Hub's longest has about 26,000
DEPTH: Final = 64  # nesting of lists and objects; AI-Hub's rows have 2
_BOM = b"\xef\xbb\xbf"
_BUFFER = 16384  # bytes; errors are located to within one buffer
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
_OPEN, _CLOSE = {"start_map", "start_array"}, {"end_map", "end_array"}


def stream_json(entry: Entry, key: str | None, limit: int | None) -> Iterator[Any]:
    """Rows of the array under `key` of a JSON object, or of a top-level array if `key` is None.

    Reads to the end of the file, so that truncation is detected, unless `limit` rows come first.
    Raises ValueError naming file, row and byte of invalid JSON and of a row that is too large or
    nested too deep, and naming a file without rows.
    """
    rows = _Rows(entry, key)
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    with _reading(entry) as raw:
        file = _Counted(raw)
        chunk = b"begin"
        while chunk:
            chunk = file.read(_BUFFER)
            broken = _send(parser, chunk)
            for event, value in events:
                if rows.take(event, value, file.count):
                    yield rows.row
                    if rows.count == limit:
                        return
            events.clear()
            if broken is not None:
                raise ValueError(
                    f"{entry.where}: not JSON, or truncated, after row {rows.count}, before byte"
                    f" {file.count}: {_one_line(broken)}"
                ) from broken
            rows.check_size(file.count)
    if rows.count == 0:
        raise ValueError(rows.why_none())


def _send(parser: Any, chunk: bytes) -> Exception | None:
    """Feed the parser a chunk, or the end of file if empty; returns its error or None."""
    try:
        if chunk:
            parser.send(chunk)
        else:
            parser.close()
    except (JSONError, ValueError) as error:  # not UTF-8, a number of 5,000 digits
        return error
    return None


class _Rows:
    """Rows assembled from the events of a JSON parser, one at a time.

    ijson.items does the same, but stores the path of every event: a hundred thousand nested
    brackets take 25 GB.
    """

    def __init__(self, entry: Entry, key: str | None) -> None:
        self._entry, self._key = entry, key
        self._level = 1 if key is None else 2  # nesting depth of a row
        self._depth = 0
        self._within = False  # inside the array of rows
        self._found: str | None = None  # first event of the key's value
        self._at_key = key is None
        self._builder: ObjectBuilder | None = None
        self._row_began = 0
        self.count = 0
        self.row: Any = None

    def take(self, event: str, value: Any, byte: int) -> bool:
        """Process an event that ends before this byte; True if it completes a row (in `row`)."""
        if event in _CLOSE:
            self._depth -= 1
        if self._within and self._depth < self._level:
            self._within = False  # the array's own end
        whole = self._within and self._build(event, value)
        if whole:
            self._row_began = byte
        if not self._within and self._depth == self._level - 1:
            self._watch(event, value)
        if event in _OPEN:
            self._depth += 1
            if self._depth > DEPTH + self._level:
                raise ValueError(
                    f"{self._entry.where}: after row {self.count}: nested deeper than {DEPTH}"
                )
        return whole

    def check_size(self, byte: int) -> None:
        """Raise ValueError if no row ended within the last ROW_BYTES before this byte."""
        if byte - self._row_began > ROW_BYTES + _BUFFER:
            raise ValueError(
                f"{self._entry.where}: after row {self.count}: no row ends within"
                f" {byte - self._row_began} bytes; expected at most {ROW_BYTES}"
            )

    def why_none(self) -> str:
        """Why no rows were found."""
        where, key = self._entry.where, self._key
        if self._found is None:
            return f'{where}: no {key}; expected {{"{key}": [rows]}}'
        if self._found != "start_array":
            return f"{where}: {key} is a {self._found.removeprefix('start_')}, not an array"
        return f"{where}: no rows; {key or 'the array'} is empty"

    def _watch(self, event: str, value: Any) -> None:
        """Look for the start of the array of rows."""
        if event == "map_key":
            self._at_key = value == self._key
        elif self._at_key and event not in _CLOSE:
            self._found = event
            self._within = event == "start_array"
            self._at_key = False

    def _build(self, event: str, value: Any) -> bool:
        if self._builder is None:
            self._builder = ObjectBuilder()
        self._builder.event(event, value)
        if self._depth > self._level or event in _OPEN:
            return False
        self.row, self._builder = self._builder.value, None
        self.count += 1
        return True


def stream_rows(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a JSON Lines file, or of a JSON array whatever its name.

    An invalid line is yielded as its text, except for the first or last row: then the file has
    another format or is truncated.
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
            row = _parsed(line)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
            if count == 0 or last:
                state = "truncated" if count else "not JSON"
                raise ValueError(
                    f"{entry.where}, line {number}: {state}: {_one_line(error)};"
                    " expected a JSON object per line, or one JSON array"
                ) from error
            row = line.decode("utf-8", errors="replace")
        count += 1
        yield row
    if count == 0:
        raise ValueError(f"{entry.where}: no rows; expected a JSON object per line")


def _parsed(line: bytes) -> Any:
    """A line's value. Raises ValueError if it is not JSON, or nested too deep."""
    try:
        row = json.loads(line.decode("utf-8-sig"))  # given bytes, json would also accept UTF-16
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEPTH}") from error
    if line.count(b"[") + line.count(b"{") > DEPTH and _is_deep(row):
        raise ValueError(f"nested deeper than {DEPTH}")
    return row


def _is_deep(value: Any) -> bool:
    layer = [value]
    for _ in range(DEPTH):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(layer)


@contextmanager
def _reading(entry: Entry) -> Iterator[IO[bytes]]:
    try:
        with entry.open() as raw:
            yield raw
    except _DAMAGED as error:
        raise ValueError(f"{entry.where}: unreadable: {_one_line(error)}") from error


class _Counted:
    """A file without its byte order mark, and the number of bytes read so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        chunk = self._file.read(size)
        first = self.count == 0
        self.count += len(chunk)
        if first and chunk.startswith(_BOM):
            return chunk[len(_BOM) :] or self.read(size)
        return chunk


def _lines(entry: Entry) -> Iterator[tuple[int, bytes, bool]]:
    """Non-empty lines: number, bytes, and whether the line is the last."""
    pending: tuple[int, bytes] | None = None
    with _reading(entry) as raw:
        for number, line in enumerate(iter(lambda: raw.readline(ROW_BYTES + 1), b""), 1):
            if len(line) > ROW_BYTES:
                raise ValueError(
                    f"{entry.where}, line {number}: more than {ROW_BYTES} bytes, the limit per row"
                )
            stripped = line.strip()  # _parsed removes a byte order mark
            if not stripped:
                continue
            if pending is not None:
                yield *pending, False
            pending = (number, stripped)
    if pending is not None:
        yield *pending, True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
