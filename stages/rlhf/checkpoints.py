"""Checkpoints that a kill at any moment leaves whole: tensors and plain values, step by step.

    <folder>/step-12/state.safetensors, state.json, manifest.json {file: sha256}
    <folder>/LATEST

A checkpoint is written beside its place, synced to disk, renamed, and only then named in LATEST.
Nothing is unpickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.rlhf.hub import file_hash

LATEST, MANIFEST, PREFIX = "LATEST", "manifest.json", "step-"
KEPT = 2


class Checkpoint(NamedTuple):
    """What was saved at the end of a step."""

    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write a checkpoint and take away all but the newest `KEPT`.

    Raises ValueError where the disk refuses it; earlier ones stay as they are.
    """
    place = folder / f"{PREFIX}{step}"
    draft = folder / f"{place.name}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(whole, draft / "state.safetensors")
        (draft / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        hashes = {file.name: file_hash(file) for file in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
        for file in [*draft.iterdir(), draft]:
            _sync(file)
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
        latest = folder / f"{LATEST}.tmp"
        latest.write_text(place.name, encoding="utf-8")
        _sync(latest)
        latest.rename(folder / LATEST)
        _sync(folder)
    except OSError as error:
        raise ValueError(f"{draft}: no checkpoint could be written: {error}") from error
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def load(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named on stderr and passed over.

    None where there is none.
    """
    for place in _newest_first(folder):
        damage = _damage(place)
        if damage:
            click.echo(f"{place}: {damage}; the checkpoint before it is used", err=True)
            continue
        plain = json.loads((place / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(_step(place), load_file(place / "state.safetensors"), plain)
    return None


def _newest_first(folder: Path) -> list[Path]:
    """Finished checkpoints: the one LATEST names, then by step."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    named = (folder / LATEST).read_text(encoding="utf-8") if (folder / LATEST).is_file() else ""
    return sorted(found, key=lambda p: (p.name == named, _step(p)), reverse=True)


def _step(place: Path) -> int:
    return int(place.name.removeprefix(PREFIX))


def _damage(place: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        for name in ("state.safetensors", "state.json"):
            if file_hash(place / name) != hashes[name]:
                return f"{name} is not what {MANIFEST} says"
    except (OSError, ValueError, KeyError) as error:
        return f"damaged ({type(error).__name__}: {error})"
    return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
