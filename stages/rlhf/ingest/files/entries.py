"""Files of a source: in folders, in zips (also nested), in zips split into pieces, gzipped.

Nothing is ever extracted: an entry named "/SFTlabel.json" or "../../SFTlabel.json" is read in place
and identified by its base name only. The contents of a zip are bounded before anything is read: an
entry never yields more than its declared size, and the sum of those is checked against the zip's
own size.
"""

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from stages.rlhf.ingest.files.folders import Opener, find_files, is_litter

ZIP_ENTRIES: Final = 10_000
ZIP_DIRECTORY: Final = 8 << 20  # bytes of the central directory, which zipfile reads at once
ZIP_DEPTH: Final = 3  # nesting of zips
ZIP_RATIO: Final = 200  # compression ratio; Korean text has 4, a thousand equal rows 100
ZIP_FREE: Final = 100 << 20  # uncompressed bytes allowed at any ratio

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # bzip2 and LZMA expand in bursts of GB
_BAD_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    struct.error,
    ValueError,  # a negative offset, a badly encoded name
    RuntimeError,
    OverflowError,
    zlib.error,  # in a nested zip
)


@dataclass(frozen=True)
class Entry:
    """A file of the source. `where`: its path, for messages; `open`: a context with its bytes.

    `folders`: names of the folders and zips around it, from `data.path` inwards.
    """

    name: str
    where: str
    folders: tuple[str, ...]
    open: Opener


def list_entries(path: Path) -> Iterator[Entry]:
    """All files below a folder, or in a zip, in a fixed order.

    Raises ValueError naming a zip that is damaged, a zip bomb, or lacks a piece.
    """
    for name, where, opener in find_files(path):
        yield from _expand(where, tuple(name.split("/")), opener)


def _expand(where: str, parts: tuple[str, ...], opener: Opener) -> Iterator[Entry]:
    """The file itself or, for a zip, the files in it, recursively."""
    name = parts[-1]
    if not name.lower().endswith(".zip"):
        if name.lower().endswith(".gz"):
            name, opener = name[:-3], partial(_open_gzip, opener)
        yield Entry(name, where, parts[:-1], opener)
        return
    depth = sum(part.lower().endswith(".zip") for part in parts)
    if depth > ZIP_DEPTH:
        raise ValueError(f"{where:.500}: zips nested {depth} deep; expected at most {ZIP_DEPTH}")
    infos, size = _directory(opener, where)
    _check_bounds(infos, size, where)
    for info in sorted(infos, key=lambda info: (info.filename, info.header_offset)):
        inner = tuple(info.filename.replace("\\", "/").split("/"))
        if any(map(is_litter, inner)):
            continue
        yield from _expand(
            f"{where}!{info.filename}", parts + inner, partial(_open_member, opener, info, where)
        )


def _directory(opener: Opener, where: str) -> tuple[list[zipfile.ZipInfo], int]:
    """The files in a zip, and its size in bytes."""
    try:
        with opener() as raw, zipfile.ZipFile(_Sipped(raw)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            return infos, raw.seek(0, os.SEEK_END)
    except _BAD_ZIP as error:
        raise ValueError(f"{where}: not a readable zip: {error}") from error


def _check_bounds(infos: list[zipfile.ZipInfo], size: int, where: str) -> None:
    """Raise ValueError if a zip of `size` bytes has too many entries, or too large ones."""
    if len(infos) > ZIP_ENTRIES:
        raise ValueError(f"{where}: {len(infos)} files in a zip; expected at most {ZIP_ENTRIES}")
    whole = sum(info.file_size for info in infos)
    if whole > max(ZIP_FREE, ZIP_RATIO * size):
        raise ValueError(
            f"{where}: a zip of {size} bytes expands to {whole}; expected at most {ZIP_RATIO} times"
            f" as much, or {ZIP_FREE}"
        )
    for info in infos:
        if info.compress_type not in _METHODS:
            raise ValueError(
                f"{where}!{info.filename}: compressed by method {info.compress_type};"
                " expected stored (0) or deflated (8)"
            )


@contextmanager
def _open_member(opener: Opener, info: zipfile.ZipInfo, where: str) -> Iterator[IO[bytes]]:
    with opener() as raw, zipfile.ZipFile(_Sipped(raw)) as archive:
        try:
            member = archive.open(info)
        except _BAD_ZIP as error:  # encrypted, or not at its declared offset
            raise ValueError(f"{where}!{info.filename}: cannot be read: {error}") from error
        with member:
            yield member


@contextmanager
def _open_gzip(opener: Opener) -> Iterator[IO[bytes]]:
    with opener() as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.seek(0)
        with gzip.open(raw) as unpacked, io.BufferedReader(_Bounded(unpacked, size)) as buffered:
            yield buffered


class _Bounded(io.RawIOBase):
    """What a compressed file of `size` bytes expands to; refuses to be a bomb."""

    def __init__(self, unpacked: gzip.GzipFile, size: int) -> None:
        self._unpacked, self._size = unpacked, size
        self._left = max(ZIP_FREE, ZIP_RATIO * size)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer. Raises OSError if it is more than the bound."""
        chunk = self._unpacked.read(len(buffer))
        self._left -= len(chunk)
        if self._left < 0:
            raise OSError(
                f"{self._size} bytes expand to more than {ZIP_RATIO} times as much, or {ZIP_FREE}"
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _Sipped(io.RawIOBase, IO[bytes]):
    """A file that refuses reads of more than ZIP_DIRECTORY bytes at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in bytes."""
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes. Raises zipfile.BadZipFile if there are too many."""
        most = ZIP_DIRECTORY + 1
        chunk = self._file.read(most if size is None or size < 0 else min(size, most))
        if len(chunk) > ZIP_DIRECTORY:
            raise zipfile.BadZipFile(f"a central directory of more than {ZIP_DIRECTORY} bytes")
        return chunk
