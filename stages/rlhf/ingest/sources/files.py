"""Files of a source: in folders, in zips (also nested), in zips split into pieces.

Nothing is ever extracted: an entry named "/SFTlabel.json" or "../../SFTlabel.json" is read in place
and identified by its base name only. The contents of a zip are bounded before anything is read: an
entry never yields more than its declared size, and the sum of those is checked against the zip's
own size.
"""

import glob
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

ZIP_ENTRIES: Final = 10_000
ZIP_DIRECTORY: Final = 8 << 20  # bytes of the central directory, which zipfile reads at once
ZIP_DEPTH: Final = 3  # nesting of zips
ZIP_RATIO: Final = 200  # compression ratio; Korean text has 4, a thousand equal rows 100
ZIP_FREE: Final = 100 << 20  # uncompressed bytes allowed at any ratio

Opener = Callable[[], AbstractContextManager[IO[bytes]]]

_PIECE = re.compile(r"(.+\.zip)\.part(\d+)", re.IGNORECASE)
_VALIDATION_ZIP = re.compile(r"V[LS](?:[_.\- \d].*)?\.zip")  # VL.zip, VS_02.RLHF데이터.zip
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
    """A file of the source. `where`: its path, for messages; `open`: a context with its bytes."""

    name: str
    where: str
    validation: bool
    open: Opener


def list_entries(path: Path) -> Iterator[Entry]:
    """All files below a folder, or in a zip, in a fixed order.

    Raises ValueError naming a zip that is damaged, a zip bomb, or lacks a piece.
    """
    for name, pieces in sorted(_find(path).items()):
        where = str(pieces[0].parent / Path(name).name)
        opener: Opener = partial(_open_file, pieces[0])
        if _PIECE.fullmatch(pieces[0].name):
            opener = partial(_Joined, _checked(pieces))
        yield from _expand(where, tuple(name.split("/")), opener)


def _find(path: Path) -> dict[str, list[Path]]:
    """Paths relative to the source -> what to read for each: the file itself, or its pieces."""
    if path.is_file():
        piece = _PIECE.fullmatch(path.name)
        files = sorted(path.parent.glob(f"{glob.escape(piece[1])}.part*")) if piece else [path]
        root = path.parent
    else:
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        root = path
    found: dict[str, list[Path]] = {}
    for file in files:
        piece = _PIECE.fullmatch(file.name)
        whole = file.with_name(piece[1]) if piece else file
        if piece and whole.exists():
            continue  # already joined
        found.setdefault(whole.relative_to(root).as_posix(), []).append(file)
    return found


def _number(piece: Path) -> int:
    match = _PIECE.fullmatch(piece.name)
    assert match is not None
    return int(match[2])


def _checked(pieces: list[Path]) -> list[Path]:
    """Pieces in order; they are numbered 0, 1, 2, …, or by the byte offset of each."""
    pieces = sorted(pieces, key=_number)
    begins = [sum(p.stat().st_size for p in pieces[:n]) for n in range(len(pieces))]
    numbers = [_number(piece) for piece in pieces]
    if numbers not in (begins, list(range(len(pieces))), list(range(1, len(pieces) + 1))):
        raise ValueError(
            f"{pieces[0]}: a piece is missing; found .part"
            + ", .part".join(str(number) for number in numbers)
            + ", expected 0, 1, 2, … or the byte offset of each piece"
        )
    return pieces


def _expand(where: str, parts: tuple[str, ...], opener: Opener) -> Iterator[Entry]:
    """The file itself or, for a zip, the files in it, recursively."""
    if not parts[-1].lower().endswith(".zip"):
        validation = any(_is_validation(part) for part in parts[:-1])
        yield Entry(parts[-1], where, validation, opener)
        return
    depth = sum(part.lower().endswith(".zip") for part in parts)
    if depth > ZIP_DEPTH:
        raise ValueError(f"{where:.500}: zips nested {depth} deep; expected at most {ZIP_DEPTH}")
    infos, size = _directory(opener, where)
    _check_bounds(infos, size, where)
    for info in sorted(infos, key=lambda info: (info.filename, info.header_offset)):
        inner = tuple(info.filename.replace("\\", "/").split("/"))
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


def _is_validation(part: str) -> bool:
    return part.lower() == "validation" or _VALIDATION_ZIP.fullmatch(part) is not None


def _open_file(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():  # a pipe would block forever
        raise ValueError(f"{path}: not a regular file; pipes and devices are not read")
    return path.open("rb")


@contextmanager
def _open_member(opener: Opener, info: zipfile.ZipInfo, where: str) -> Iterator[IO[bytes]]:
    with opener() as raw, zipfile.ZipFile(_Sipped(raw)) as archive:
        try:
            member = archive.open(info)
        except _BAD_ZIP as error:  # encrypted, or not at its declared offset
            raise ValueError(f"{where}!{info.filename}: cannot be read: {error}") from error
        with member:
            yield member


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


class _Joined(io.RawIOBase, IO[bytes]):
    """Pieces of a file, read as one seekable file."""

    def __init__(self, pieces: list[Path]) -> None:
        self._pieces = pieces
        self._begins = [0]
        for piece in pieces:
            self._begins.append(self._begins[-1] + piece.stat().st_size)
        self._at = 0
        self._open: tuple[int, IO[bytes]] | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in the joined file."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the joined file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._begins[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes; fewer than `size` only at the end."""
        left = self._begins[-1] - self._at if size is None or size < 0 else size
        chunks = []
        while left > 0 and self._at < self._begins[-1]:
            number = next(n for n, end in enumerate(self._begins[1:]) if self._at < end)
            file = self._file(number)
            file.seek(self._at - self._begins[number])
            chunk = file.read(left)
            if not chunk:
                raise EOFError(f"{self._pieces[number]} shrank while it was read")
            chunks.append(chunk)
            self._at += len(chunk)
            left -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Close the piece that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        super().close()

    def _file(self, number: int) -> IO[bytes]:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = (number, self._pieces[number].open("rb"))
        return self._open[1]
