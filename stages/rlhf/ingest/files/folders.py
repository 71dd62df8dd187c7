"""Files on disk: below a folder, behind links, in pieces that belong together.

Links are followed, loops end, and what two links of the same name reach is read once. What systems
and editors leave behind (__MACOSX, ._sft.jsonl, .ipynb_checkpoints, $RECYCLE.BIN) is no data.
"""

import glob
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO

Opener = Callable[[], AbstractContextManager[IO[bytes]]]

_PIECE = re.compile(r"(.+\.zip)\.part(\d+)", re.IGNORECASE)
_LITTER = {
    "__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "thumbs.db",
    "desktop.ini",
}  # fmt: skip


def find_files(path: Path) -> Iterator[tuple[str, str, Opener]]:
    """A file, or all below a folder, in a fixed order: name relative to it, path, how to open it.

    Raises ValueError naming a missing piece, a folder that cannot be read, a link to nothing.
    """
    for name, pieces in sorted(_find(path).items()):
        opener: Opener = partial(_open_file, pieces[0])
        if _PIECE.fullmatch(pieces[0].name):
            opener = partial(_Joined, _checked(pieces))
        yield name, str(pieces[0].parent / Path(name).name), opener


def _find(path: Path) -> dict[str, list[Path]]:
    """Paths relative to the source -> what to read for each: the file itself, or its pieces."""
    if path.is_file():
        if path.is_symlink() and not path.suffix:
            path = path.resolve()  # a link without a name of its own to a zip
        piece = _PIECE.fullmatch(path.name)
        files = sorted(path.parent.glob(f"{glob.escape(piece[1])}.part*")) if piece else [path]
        root = path.parent
    else:
        files, root = _walk(path), path
    found: dict[str, list[Path]] = {}
    seen: set[tuple[str, Path | tuple[int, int]]] = set()
    for file in files:
        piece = _PIECE.fullmatch(file.name)
        whole = file.with_name(piece[1]) if piece else file
        if piece and whole.exists():
            continue  # already joined
        if file.suffix.lower() == ".gz" and file.with_suffix("").exists():
            continue  # already unpacked
        status = file.stat()
        many = status.st_nlink > 1
        # by name, too: links of two names are two parts with the same rows
        same = (file.name, (status.st_dev, status.st_ino) if many else file.resolve())
        if same not in seen:
            seen.add(same)
            found.setdefault(whole.relative_to(root).as_posix(), []).append(file)
    return found


def _walk(root: Path) -> list[Path]:
    """All files below a folder but litter; links are followed, and come last.

    Raises ValueError naming a folder that cannot be read, and a link to what does not exist.
    """
    files: list[Path] = []
    linked: list[Path] = []
    folders, later = [root], list[Path]()
    seen: set[Path] = set()  # real paths: a loop ends, and what two links reach is read once
    while folders or later:
        folder = folders.pop() if folders else later.pop(0)
        try:
            if (real := folder.resolve()) in seen:
                continue
            seen.add(real)
            for one in sorted(folder.iterdir()):
                if is_litter(one.name):
                    continue
                link = one.is_symlink()
                if link and not one.exists():
                    raise ValueError(
                        f"{one}: a link to {one.readlink()}, which does not exist;"
                        " is its disk mounted?"
                    )
                if one.is_dir():
                    (later if link else folders).append(one)
                else:
                    (linked if link else files).append(one)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be read: {error.strerror}") from error
    return sorted(files) + sorted(linked)


def is_litter(name: str) -> bool:
    """Whether a system or an editor made the file or folder: hidden, temporary, thrown away."""
    hidden = name.startswith((".", "~$")) and name not in (".", "..")
    return hidden or name.lower() in _LITTER


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


def _open_file(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():  # a pipe would block forever
        raise ValueError(f"{path}: not a regular file; pipes and devices are not read")
    return path.open("rb")


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
