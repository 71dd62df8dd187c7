"""CSV, TSV and Parquet, read row by row in bounded memory as dicts.

`datasets.load_dataset` opens no file within a zip and guesses the types of CSV columns (001 becomes
1), so CSV is read by Python's csv and Parquet by pyarrow, as `datasets` does. A CSV cell is a text,
None if empty, and a list or object if it holds one as JSON or as pandas writes it. A CSV file is
UTF-8, UTF-16 with a byte order mark, or CP949 (Excel in Korean), separated by the sign of `, ; tab`
that its header has most of. A CSV row that has another number of cells than the header, is badly
quoted or badly encoded, is its text.
"""

import ast
import codecs
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from stages.rlhf.ingest.files.document import DECODER, ROW_BYTES, is_deep, one_line
from stages.rlhf.ingest.files.entries import ZIP_FREE, ZIP_RATIO, Entry
from stages.rlhf.ingest.files.streams import reading

_SUFFIXES = (".csv", ".tsv", ".parquet")
_CHUNK = 1 << 16  # bytes
_BATCH = 64  # rows of a Parquet file in memory
_IN_MEMORY = 64 << 20  # bytes of a Parquet file within a zip; the rest goes to a temporary file
_LITERAL = 1 << 16  # characters of a Python literal, whose syntax tree takes a hundred times that
_QUOTED = re.compile(r"""'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+\"""", re.DOTALL)


def is_table(name: str) -> bool:
    """Whether a file of this base name is a table."""
    return name.lower().endswith(_SUFFIXES)


def stream_table(entry: Entry, limit: int | None) -> Iterator[Any]:
    """Rows of a table as dicts, by the names of its columns; a CSV row that is none, as its text.

    Raises ValueError naming file and row of a row that is too large, and naming a file that is
    damaged, truncated, a bomb, or has no rows or no usable header.
    """
    rows = _parquet_rows(entry) if entry.name.lower().endswith(".parquet") else _csv_rows(entry)
    count = 0
    for row in rows:
        if count == limit:
            return
        count += 1
        yield row
    if count == 0 and limit != 0:
        raise ValueError(f"{entry.where}: no rows; expected names of columns, and rows below them")


# ---- CSV


class _Lines:
    """Lines of a file; those of the current row are kept. Raises ValueError if it is too large."""

    def __init__(self, file: IO[str], where: str) -> None:
        self._file, self._where = file, where
        self._number = 0
        self.ended = False
        self.begin()

    def begin(self) -> None:
        """A row begins with the next line."""
        self._row: list[str] = []
        self._size = 0
        self._first = self._number + 1
        self.encoded = True  # well

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(ROW_BYTES + 1)
        self.ended = not line
        if self.ended:
            raise StopIteration
        self._number += 1
        self._row.append(line)
        try:
            self._size += len(line.encode())
        except UnicodeEncodeError:
            self.encoded = False
            self._size += len(line)
        if self._size > ROW_BYTES:
            raise ValueError(f"{self.where}: more than {ROW_BYTES} bytes, the limit per row")
        return line

    @property
    def where(self) -> str:
        """File and line of the row."""
        return f"{self._where}, line {self._first}"

    @property
    def text(self) -> str:
        """The row."""
        text = "".join(self._row).strip("\r\n")
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _csv_rows(entry: Entry) -> Iterator[Any]:
    codec, separator = _look(entry)
    with (
        reading(entry) as raw,
        io.TextIOWrapper(raw, codec, errors="surrogateescape", newline="") as file,
    ):
        lines = _Lines(file, entry.where)
        rows = _split(lines, separator, codec)
        names = _names(next(rows, []), entry.where)
        for cells in rows:
            if lines.encoded and len(cells) >= len(names) and not any(cells[len(names) :]):
                yield {n: _value(c) for n, c in zip(names, cells, strict=False) if n}
            else:
                yield lines.text


def _split(lines: _Lines, separator: str, codec: str) -> Iterator[list[str]]:
    """The cells of each row that is not blank; none where it is badly quoted."""
    csv.field_size_limit(max(csv.field_size_limit(), ROW_BYTES))
    table = csv.reader(lines, delimiter=separator, strict=True)
    while not lines.ended:
        lines.begin()
        try:
            cells = next(table, [])
        except csv.Error as error:
            if lines.ended:
                raise ValueError(
                    f"{lines.where}: truncated, or a quotation mark here that none closes"
                ) from error
            yield []
        except UnicodeDecodeError as error:
            raise ValueError(f"{lines.where}: not {codec}: {one_line(error)}") from error
        else:
            if any(cells):
                yield cells


def _look(entry: Entry) -> tuple[str, str]:
    """Encoding and separator of a CSV file."""
    with reading(entry) as raw:
        first = head = raw.read(_CHUNK)
        while head.isascii() and (chunk := raw.read(_CHUNK)):
            head = chunk
        head += raw.read(_CHUNK)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        codec = "utf-16"
    else:  # in the wrong one of these, almost every Korean word is damaged
        codec = min(
            ("utf-8-sig", "cp949"),
            key=lambda name: _decoded(head, name).count("\ufffd"),
        )
    header = next((line for line in _decoded(first, codec).splitlines() if line.strip()), "")
    return codec, max("\t,;" if entry.name.lower().endswith(".tsv") else ",\t;", key=header.count)


def _decoded(data: bytes, codec: str) -> str:
    """Bytes that may end within a character."""
    return codecs.getincrementaldecoder(codec)("replace").decode(data)


def _names(cells: list[str], where: str) -> list[str]:
    """Names of the columns; one without name, such as pandas' index, is passed over."""
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if not any(names) or repeated:
        found = f"{', '.join(repeated)} twice" if repeated else "none"
        raise ValueError(f"{where}: expected names of columns in the first row; found {found}")
    return names


def _value(cell: str) -> Any:
    if not cell.lstrip().startswith(("[", "{")):
        return cell or None
    for read in (DECODER.decode, _literal):
        try:
            value = read(cell.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict) and not is_deep(value):
            return value
    return cell


def _literal(cell: str) -> Any:
    """A list or object as pandas writes it, with Python's quotes. Raises ValueError and others."""
    strings_side_by_side = re.search(r"'\s*'", _QUOTED.sub("'", cell))  # an array as numpy shows it
    if len(cell) > _LITERAL or strings_side_by_side:
        raise ValueError("not a literal")
    return json.loads(json.dumps(ast.literal_eval(cell)))


# ---- Parquet


def _parquet_rows(entry: Entry) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with reading(entry) as raw, _seekable(raw) as file:
            size = file.seek(0, io.SEEK_END)
            table = parquet.ParquetFile(file, buffer_size=_CHUNK, pre_buffer=False)
            _check_bounds(table.metadata, size, entry.where)
            for batch in table.iter_batches(_BATCH, use_threads=False):
                large = batch.nbytes > ROW_BYTES
                for row in batch.to_pylist():
                    number += 1
                    row = _plain(row)
                    if large:
                        _check_size(row, f"{entry.where}, row {number}")
                    yield row
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(
            f"{entry.where}: not Parquet, or damaged, after row {number}: {one_line(error)}"
        ) from error


@contextmanager
def _seekable(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file to jump about in, for which one within a zip is copied."""
    if isinstance(raw, io.BufferedReader) and raw.seekable():
        yield raw
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as copy:
        shutil.copyfileobj(raw, copy)
        yield copy


def _check_bounds(metadata: Any, size: int, where: str) -> None:
    """Raise ValueError if a Parquet file of `size` bytes is a bomb."""
    groups = range(metadata.num_row_groups)
    whole = sum(metadata.row_group(number).total_byte_size for number in groups)
    if whole > max(ZIP_FREE, ZIP_RATIO * size):
        raise ValueError(
            f"{where}: {size} bytes expand to {whole}; expected at most {ZIP_RATIO} times as much,"
            f" or {ZIP_FREE}"
        )


def _check_size(row: Any, where: str) -> None:
    size = len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    if size > ROW_BYTES:
        raise ValueError(f"{where}: {size} bytes; expected at most {ROW_BYTES}, the limit per row")


def _plain(value: Any) -> Any:
    """A value of a Parquet file as JSON has it: dates and decimals as text, bytes decoded."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
