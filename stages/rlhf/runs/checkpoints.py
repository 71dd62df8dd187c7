"""Checkpoints that a kill at any moment leaves whole: tensors and plain values, step by step.

    <folder>/step-12/state.safetensors, state.json, manifest.json {file: sha256}
    <folder>/LATEST

A checkpoint is written beside its place, synced to disk, renamed, and only then named in LATEST.
Nothing is unpickled.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.rlhf import files, tensors
from stages.rlhf.runs import signals
from stages.rlhf.runs.notice import notice
from stages.rlhf.runs.signals import Interrupted

LATEST, LOG, PREFIX = "LATEST", "log.jsonl", "step-"
KEPT = 2
SECONDS = "KOQA_CHECKPOINT_SECONDS"  # between two checkpoints, 30 where it is not set
COST = 0.05  # the most that saving may take of all time


class Checkpoint(NamedTuple):
    """What was saved at the end of a step."""

    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


State = tuple[Mapping[str, Tensor], Mapping[str, Any]]


class Timer:
    """When to save: every so many seconds, and seldom enough for saving to cost little."""

    def __init__(self) -> None:
        self._wait = float(os.environ.get(SECONDS, "30"))
        self._last = self._asked = time.monotonic()

    def due(self) -> bool:
        """Whether it is time."""
        self._asked = time.monotonic()
        return self._asked - self._last >= self._wait

    def saved(self) -> None:
        """Start anew; the time since `due` was asked is what saving took."""
        self._last = time.monotonic()
        if self._wait:
            self._wait = max(self._wait, (self._last - self._asked) / COST)


class Checkpointer:
    """A loop's checkpoints: it offers its state at the end of every step, and this one saves.

    Without a folder it neither saves nor ends: what has no checkpoints is finished.
    """

    def __init__(self, folder: Path | None, writes: bool = True) -> None:
        self.folder, self.writes, self._timer = folder, writes, Timer()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, of which a line in log.jsonl tells; None: from zero."""
        found = load(self.folder) if self.folder else None
        if self.folder and self.writes:
            note(self.folder, "from", found.step if found else 0)
        if found:
            notice(f"{self.folder}: goes on from step {found.step}")
        return found

    def maybe_save(
        self,
        step: int,
        state: Callable[[], State],
        now: bool = False,
        asked: bool | None = None,
    ) -> None:
        """Save `state()` if it is time or `now`; if the process is asked to end, save and do.

        A process_group agrees on `asked`; alone, it is interruption's. Raises Interrupted.
        """
        if self.folder is None:
            return
        asked = signals.stop_requested() if asked is None else asked
        if self.writes and (self._timer.due() or now or asked):
            save(self.folder, step, *state())
            note(self.folder, "saved", step)
            self._timer.saved()
        if asked:
            raise Interrupted(f"after step {step} ({self.folder})")


NO_CHECKPOINTS = Checkpointer(None)


def note(folder: Path, what: str, step: int) -> None:
    """Add to log.jsonl beside the folder: a process went on `from` a step, or `saved` one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"checkpointer": folder.name, what: step, "pid": os.getpid()}) + "\n")


def resumed_from_steps(folder: Path) -> dict[str, list[int]]:
    """By checkpointer of a work folder, the steps other than 0 at which processes went on."""
    found: dict[str, list[int]] = {}
    for told in log_of(folder):
        if told.get("from", 0) > 0:
            found.setdefault(told["checkpointer"], []).append(told["from"])
    return found


def log_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a work folder's log.jsonl; one that a kill cut is left out."""
    if (folder / LOG).is_file():
        for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def strip_prefix(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def add_prefix(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    states = optimizer.state_dict()["state"].items()
    return {f"{i}.{key}": value for i, state in states for key, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Give an optimiser of the same parameters that state."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        i, key = name.split(".", 1)
        states.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def save(folder: Path, step: int, found: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write a checkpoint and take away all but the newest `KEPT`.

    Raises ValueError where the disk refuses it; earlier ones stay as they are.
    """
    place = folder / f"{PREFIX}{step}"
    draft = folder / f"{place.name}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        whole = {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}
        save_file(whole, draft / "state.safetensors")
        (draft / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        files.write_manifest(draft)
        shutil.rmtree(place, ignore_errors=True)
        files.rename(draft, place)
        latest = folder / f"{LATEST}.tmp"
        latest.write_text(place.name, encoding="utf-8")
        files.sync(latest)
        files.rename(latest, folder / LATEST)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ValueError(f"{draft}: no checkpoint could be written: {error}") from error
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def load(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named on stderr and passed over.

    None where there is none.
    """
    for place in _newest_first(folder):
        damage = files.verify_manifest(place)
        if damage:
            notice(f"{place}: {damage}; the checkpoint before it is used")
            continue
        plain = json.loads((place / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(_step(place), tensors.read(place / "state.safetensors"), plain)
    return None


def _newest_first(folder: Path) -> list[Path]:
    """Finished checkpoints: the one LATEST names, then by step."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    named = (folder / LATEST).read_text(encoding="utf-8") if (folder / LATEST).is_file() else ""
    return sorted(found, key=lambda p: (p.name == named, _step(p)), reverse=True)


def _step(place: Path) -> int:
    return int(place.name.removeprefix(PREFIX))
