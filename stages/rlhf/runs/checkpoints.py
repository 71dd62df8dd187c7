"""Crash-safe checkpoints of a loop: tensors and plain values, step by step.

    <folder>/step-12/state.safetensors, state.json, manifest.json {file: sha256}
    <folder>/LATEST

A checkpoint is written to a draft folder, synced to disk, renamed, and only then named in LATEST.
A kill at any moment leaves a whole one. Nothing is unpickled.
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
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.signals import Interrupted

LATEST, LOG, PREFIX = "LATEST", "log.jsonl", "step-"
KEPT = 2
SECONDS = "KOQA_CHECKPOINT_SECONDS"  # between two checkpoints; default 30
COST = 0.05  # share of the run time that saving may take


class Checkpoint(NamedTuple):
    """What was saved at the end of a step."""

    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


State = tuple[Mapping[str, Tensor], Mapping[str, Any]]


class Timer:
    """When to save: every so many seconds, less often where saving is slow."""

    def __init__(self) -> None:
        self._wait = float(os.environ.get(SECONDS, "30"))
        self._last = self._checked = time.monotonic()

    def due(self) -> bool:
        """Whether it is time."""
        self._checked = time.monotonic()
        return self._checked - self._last >= self._wait

    def saved(self) -> None:
        """Restart the wait; saving took the time since `due` was called."""
        self._last = time.monotonic()
        if self._wait:
            self._wait = max(self._wait, (self._last - self._checked) / COST)


class Checkpointer:
    """Saves a loop's state at the end of a step, when it is time or when a signal came.

    Without a folder it does nothing: such a loop runs to its end. Several processes save at the
    same steps, on each machine the main one, and resume from the newest that every machine has.
    """

    def __init__(self, folder: Path | None, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self.folder, self.group, self._timer = folder, group, Timer()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, logged in log.jsonl; None: start from zero.

        Raises ValueError where another machine's is an older one that this machine has not.
        """
        if self.folder is None:
            return None
        found = load(self.folder)
        step = self.group.least(found.step if found else 0)
        if found and found.step != step:
            found = load(self.folder, step) if step else None
            if step and found is None:
                raise ValueError(
                    f"{self.folder}: no whole checkpoint of step {step}, the newest of another"
                    " machine; delete this folder on all of them to begin anew"
                )
        if self.group.is_main:
            note(self.folder, "from", step)
            if found:
                notice(f"{self.folder}: resumes from step {step}")
        return found

    def maybe_save(
        self,
        step: int,
        state: Callable[[], State],
        now: bool = False,
        may_stop: bool = True,
    ) -> None:
        """Save `state()` if it is time, or `now`, or a stop was requested; then raise Interrupted.

        A stop is one that came to any of the processes; not `may_stop`: the loop has ended anyway.
        """
        if self.folder is None:
            return
        stop, due = self.group.any_of(
            may_stop and signals.stop_requested(), self.group.is_main and self._timer.due()
        )
        if (due or now or stop) and self.group.is_main:
            save(self.folder, step, *state())
            note(self.folder, "saved", step)
            self._timer.saved()
        if stop:
            raise Interrupted(f"after step {step} ({self.folder})")


NO_CHECKPOINTS = Checkpointer(None)


def note(folder: Path, what: str, step: int) -> None:
    """Log next to the folder that a process resumed `from` a step, or `saved` one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"checkpointer": folder.name, what: step, "pid": os.getpid()}) + "\n")


def resumed_from_steps(folder: Path) -> dict[str, list[int]]:
    """By checkpointer of a work folder, the steps other than 0 from which processes resumed."""
    found: dict[str, list[int]] = {}
    for line in log_of(folder):
        if line.get("from", 0) > 0:
            found.setdefault(line["checkpointer"], []).append(line["from"])
    return found


def log_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a work folder's log.jsonl, without one that a kill cut short."""
    if (folder / LOG).is_file():
        for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def strip_prefix(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def add_prefix(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    states = optimizer.state_dict()["state"].items()
    return {f"{i}.{key}": value for i, state in states for key, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Restore the state of an optimizer of the same parameters."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        i, key = name.split(".", 1)
        states.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def save(folder: Path, step: int, found: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write a checkpoint and delete all but the newest `KEPT`.

    Raises ValueError on a disk error; earlier checkpoints stay as they are.
    """
    target = folder / f"{PREFIX}{step}"
    draft = folder / f"{target.name}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        whole = {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}
        save_file(whole, draft / "state.safetensors")
        (draft / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        files.write_manifest(draft)
        shutil.rmtree(target, ignore_errors=True)
        files.rename(draft, target)
        latest = folder / f"{LATEST}.tmp"
        latest.write_text(target.name, encoding="utf-8")
        files.sync(latest)
        files.rename(latest, folder / LATEST)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ValueError(f"{draft}: no checkpoint could be written: {error}") from error
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def load(folder: Path, step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or that of `step`, or None; damaged ones are reported."""
    for target in _newest_first(folder):
        if step is not None and _step(target) != step:
            continue
        problem = files.verify_manifest(target)
        if problem:
            notice(f"{target}: {problem}; the checkpoint before it is used")
            continue
        plain = json.loads((target / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(_step(target), tensors.read(target / "state.safetensors"), plain)
    return None


def _newest_first(folder: Path) -> list[Path]:
    """Finished checkpoints: the one that LATEST names, then by step."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    named = (folder / LATEST).read_text(encoding="utf-8") if (folder / LATEST).is_file() else ""
    return sorted(found, key=lambda p: (p.name == named, _step(p)), reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))
