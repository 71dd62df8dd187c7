"""Crash-safe files: fsync, atomic rename, sha256 manifests."""

import errno
import hashlib
import json
import os
from collections.abc import Container
from pathlib import Path

MANIFEST = "manifest.json"
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # what a file system says to fsync
RUN = "run.json"  # fingerprint of a stage's inputs, in each of its outs


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, without: Container[str] = ()) -> str:
    """One sha256 over the names and bytes of a folder's files, except those in `without`."""
    files = [name for name in files_of(folder) if name not in without]
    if not files:
        raise ValueError(f"{folder}: contains no files")
    lines = [f"{name}:{file_hash(folder / name)}\n" for name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def write_manifest(folder: Path) -> None:
    """Write manifest.json, {file: sha256}, and fsync everything in the folder."""
    names = [name for name in files_of(folder) if name != MANIFEST]
    hashes = {name: file_hash(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
    for path in [*(folder / name for name in hashes), folder / MANIFEST]:
        sync(path)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)


def verify_manifest(folder: Path) -> str | None:
    """Why the folder's files do not match its manifest, or None if they do."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in sorted({*hashes, *files_of(folder)} - {MANIFEST}):
            if name not in hashes or file_hash(folder / name) != hashes[name]:
                return f"{name} does not match {MANIFEST}"
    except (OSError, ValueError, TypeError) as error:
        return f"damaged ({type(error).__name__}: {error})"
    return None


def rename(draft: Path, target: Path) -> None:
    """Rename a finished file or folder to its final name, durably."""
    draft.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """fsync a file or folder; a folder whose file system has no fsync of folders is passed over."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (error.errno in UNSUPPORTED and path.is_dir()):
            raise
    finally:
        os.close(handle)
