"""Files of a source wherever they lie: in folders, in zips, in zips cut into pieces.

Nothing is ever extracted: an entry named "/SFTlabel.json" or "../../SFTlabel.json" is opened where
it is and known by its base name alone. What a zip may hold is bounded before any of it is read: an
entry is never longer than it says, and what all say together is held against the zip's own size.
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
ZIP_DIRECTORY: Final = 8 << 20  # bytes of the list of entries, which zipfile takes in at one go
ZIP_DEPTH: Final = 3  # zips within one another
ZIP_RATIO: Final = 200  # bytes out of one byte; Korean text gives 4, a thousand equal rows 100
ZIP_FREE: Final = 100 << 20  # bytes out of a zip that are no bomb whatever the ratio

Opener = Callable[[], AbstractContextManager[IO[bytes]]]

_PIECE = re.compile(r"(.+\.zip)\.part(\d+)", re.IGNORECASE)
_VALIDATION_ZIP = re.compile(r"V[LS](?:[_.\- \d].*)?\.zip")  # VL.zip, VS_02.RLHF데이터.zip
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # bzip2 and LZMA come in bursts of gigabytes
_BAD_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    struct.error,
    ValueError,  # a place before the file's begin, a name that is not in its encoding
    RuntimeError,
    OverflowError,
    zlib.error,  # of a zip within a zip
)


@dataclass(frozen=True)
class Entry:
    """A file of the source. `where` is for messages; `open` gives its bytes, in a context."""

    name: str
    where: str
    validation: bool
    open: Opener


def list_entries(path: Path) -> Iterator[Entry]:
    """All files below a folder, or in a zip, in a fixed order.

    Raises ValueError naming a zip that is damaged or a bomb, or a piece of one that is missing.
    """
    for name, pieces in sorted(_find(path).items()):
        where = str(pieces[0].parent / Path(name).name)
        opener: Opener = partial(_open_file, pieces[0])
        if _PIECE.fullmatch(pieces[0].name):
            opener = partial(_Joined, _checked(pieces))
        yield from _expand(where, tuple(name.split("/")), opener)


def _find(path: Path) -> dict[str, list[Path]]:
    """Files by their path below the source, each with what to read for it: itself or its pieces."""
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
            continue  # joined already
        found.setdefault(whole.relative_to(root).as_posix(), []).append(file)
    return found


def _number(piece: Path) -> int:
    match = _PIECE.fullmatch(piece.name)
    assert match is not None
    return int(match[2])


def _checked(pieces: list[Path]) -> list[Path]:
    """Pieces in order; they are numbered 0, 1, 2, …, or by the byte at which each begins."""
    pieces = sorted(pieces, key=_number)
    begins = [sum(p.stat().st_size for p in pieces[:n]) for n in range(len(pieces))]
    numbers = [_number(piece) for piece in pieces]
    if numbers not in (begins, list(range(len(pieces))), list(range(1, len(pieces) + 1))):
        raise ValueError(
            f"{pieces[0]}: a piece is missing beside it; found .part"
            + ", .part".join(str(number) for number in numbers)
            + ", expected 0, 1, 2, … or the byte at which each piece begins"
        )
    return pieces


def _expand(where: str, parts: tuple[str, ...], opener: Opener) -> Iterator[Entry]:
    """The file itself or, of a zip, the files in it; zips within zips too."""
    if not parts[-1].lower().endswith(".zip"):
        validation = any(_is_validation(part) for part in parts[:-1])
        yield Entry(parts[-1], where, validation, opener)
        return
    depth = sum(part.lower().endswith(".zip") for part in parts)
    if depth > ZIP_DEPTH:
        raise ValueError(f"{where:.500}: a zip within {depth - 1} zips; at most {ZIP_DEPTH} in all")
    infos, size = _directory(opener, where)
    _check_bounds(infos, size, where)
    for info in sorted(infos, key=lambda info: (info.filename, info.header_offset)):
        inner = tuple(info.filename.replace("\\", "/").split("/"))
        yield from _expand(
            f"{where}!{info.filename}", parts + inner, partial(_open_member, opener, info, where)
        )


def _directory(opener: Opener, where: str) -> tuple[list[zipfile.ZipInfo], int]:
    """The files that a zip holds, and its size."""
    try:
        with opener() as raw, zipfile.ZipFile(_Sipped(raw)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            return infos, raw.seek(0, os.SEEK_END)
    except _BAD_ZIP as error:
        raise ValueError(f"{where}: not a zip that can be read: {error}") from error


def _check_bounds(infos: list[zipfile.ZipInfo], size: int, where: str) -> None:
    """Raise ValueError where a zip of `size` bytes holds too many entries, or too much in them."""
    if len(infos) > ZIP_ENTRIES:
        raise ValueError(f"{where}: {len(infos)} files in a zip; at most {ZIP_ENTRIES} expected")
    whole = sum(info.file_size for info in infos)
    if whole > max(ZIP_FREE, ZIP_RATIO * size):
        raise ValueError(
            f"{where}: a zip of {size} bytes that holds {whole}; at most {ZIP_RATIO} times as much,"
            f" or {ZIP_FREE}, was expected"
        )
    for info in infos:
        if info.compress_type not in _METHODS:
            raise ValueError(
                f"{where}!{info.filename}: compressed by method {info.compress_type};"
                " stored (0) or deflated (8) was expected"
            )


def _is_validation(part: str) -> bool:
    return part.lower() == "validation" or _VALIDATION_ZIP.fullmatch(part) is not None


def _open_file(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path}: not a file; a pipe or a device cannot be read")
    return path.open("rb")


@contextmanager
def _open_member(opener: Opener, info: zipfile.ZipInfo, where: str) -> Iterator[IO[bytes]]:
    with opener() as raw, zipfile.ZipFile(_Sipped(raw)) as archive:
        try:
            member = archive.open(info)
        except _BAD_ZIP as error:  # encrypted, or not where the list says
            raise ValueError(f"{where}!{info.filename}: cannot be read: {error}") from error
        with member:
            yield member


class _Sipped(io.RawIOBase, IO[bytes]):
    """A file of which nobody takes more than ZIP_DIRECTORY bytes at one go."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Byte of the file."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the file."""
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on. Raises zipfile.BadZipFile where they are too many."""
        most = ZIP_DIRECTORY + 1
        chunk = self._file.read(most if size is None or size < 0 else min(size, most))
        if len(chunk) > ZIP_DIRECTORY:
            raise zipfile.BadZipFile(f"a list of files of more than {ZIP_DIRECTORY} bytes")
        return chunk


class _Joined(io.RawIOBase, IO[bytes]):
    """Pieces of a file, read as one; it can seek, so that zipfile can read it."""

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
        """Byte of the whole."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the whole."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._begins[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on; fewer than `size` at the end alone."""
        left = self._begins[-1] - self._at if size is None or size < 0 else size
        chunks = []
        while left > 0 and self._at < self._begins[-1]:
            number = next(n for n, end in enumerate(self._begins[1:]) if self._at < end)
            file = self._file(number)
            file.seek(self._at - self._begins[number])
            chunk = file.read(left)
            if not chunk:
                raise EOFError(f"{self._pieces[number]} is shorter than it was")
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
