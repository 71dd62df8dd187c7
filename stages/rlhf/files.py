"""Files that a kill leaves whole: hashes, manifests, and writes that reach the disk."""

import hashlib
import json
import os
from collections.abc import Container
from pathlib import Path

MANIFEST = "manifest.json"
RUN = "run.json"  # what a stage's result comes from, in each of its outs


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, without: Container[str] = ()) -> str:
    """One sha256 for the names and bytes of all files of a folder, but those `without`."""
    files = [name for name in files_of(folder) if name not in without]
    if not files:
        raise ValueError(f"{folder}: no files there")
    lines = [f"{name}:{file_hash(folder / name)}\n" for name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(folder: Path) -> list[str]:
    """Every file of a folder, by its path from there, in a fixed order."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def write_manifest(folder: Path) -> None:
    """Write manifest.json, {file: sha256}, and have all of the folder reach the disk."""
    names = [name for name in files_of(folder) if name != MANIFEST]
    hashes = {name: file_hash(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
    for path in [*(folder / name for name in hashes), folder / MANIFEST]:
        sync(path)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)


def verify_manifest(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in sorted({*hashes, *files_of(folder)} - {MANIFEST}):
            if name not in hashes or file_hash(folder / name) != hashes[name]:
                return f"{name} is not what {MANIFEST} says"
    except (OSError, ValueError, TypeError) as error:
        return f"damaged ({type(error).__name__}: {error})"
    return None


def rename(draft: Path, place: Path) -> None:
    """Give a finished file or folder its name, for good."""
    draft.rename(place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Have a file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
