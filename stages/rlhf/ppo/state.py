"""All that the next update depends on: into a checkpoint, and back, to the same bits."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from torch import Tensor

from stages.rlhf.ppo.actor_critic import ActorCritic
from stages.rlhf.ppo.rollout import Minibatch
from stages.rlhf.ppo.selection import SFT, Decide, Kept, Row
from stages.rlhf.runs.checkpoints import (
    Checkpoint,
    Checkpointer,
    State,
    add_prefix,
    load_optimizer,
    optimizer_tensors,
    strip_prefix,
)
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runtime import Clock

MAX_BAD_STEPS = 3  # steps in a row whose gradient is not finite, before the run gives up


@dataclass
class Progress:
    """What a run has come to: plain values, and the policy that is kept."""

    update: int  # the last one that is done
    kl_coef: float  # of the next update
    updates: list[Row] = field(default_factory=list)  # rows of updates.csv
    validation: list[Row] = field(default_factory=list)  # rows of validation.csv, SFT's first
    shown: list[list[str]] = field(default_factory=list)  # per row of it, answers to be read
    kept: Kept = SFT
    kept_policy: dict[str, Tensor] = field(default_factory=dict)
    stopped: str | None = None  # why there is no next update
    bad_steps: int = 0  # whose gradient was not finite
    bad_in_a_row: int = 0

    def add_validation(
        self, update: int, metrics: dict[str, float], shown: list[str], decide: Decide
    ) -> None:
        """An evaluation is done: note it, and which policy is kept now."""
        kl = self.updates[-1]["kl"] if self.updates else 0.0
        self.validation.append({"update": update, "sqrt_kl": max(kl, 0.0) ** 0.5, **metrics})
        self.shown.append(shown)
        self.kept = decide(self.validation)
        self.stopped = self.kept.stop

    def count_bad_step(self, batch: Minibatch, folder: Path | None) -> None:
        """A step's gradient was not finite; the third in a row ends the run with a ValueError.

        Its batch is written to bad_batch.json in `folder`, unless another process writes.
        """
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row < MAX_BAD_STEPS:
            return
        message = f"{MAX_BAD_STEPS} steps in a row had a gradient that is not finite"
        if folder is None:
            raise ValueError(message)
        file = folder / "bad_batch.json"
        found = {"ids": batch.sequences.ids.tolist(), "advantages": batch.advantages.tolist()}
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
        raise ValueError(f"{message}; the last batch is in {file}")


class Resume:
    """A run's checkpoints: taken up from the newest at once, then written as it goes on."""

    def __init__(
        self,
        folder: Path | None,
        model: ActorCritic,
        progress: Progress,
        clock: Clock,
        group: ProcessGroup,
    ) -> None:
        self._checkpointer = Checkpointer(folder, group)
        self._model, self._progress, self._clock = model, progress, clock
        found = self._checkpointer.load()
        if found:
            restore(found, model, progress, clock)

    def maybe_save(self, step: int, now: bool) -> None:
        """Save if it is time or `now`. Raises Interrupted where a stop was requested."""

        def state() -> State:
            return snapshot(self._model, self._progress, self._clock)

        running = self._progress.stopped is None
        self._checkpointer.maybe_save(step, state, now, may_stop=running)
        self._clock.lap("checkpoint")


def snapshot(model: ActorCritic, progress: Progress, clock: Clock) -> State:
    """Named tensors and plain values, as `checkpoints.save` takes them."""
    tensors = dict(model.value_head.state_dict(prefix="head.")) if model.value_head else {}
    states = {role: model.roles.state(role) for role in model.optimizers}
    for name, state in {**states, "kept": progress.kept_policy}.items():
        tensors |= add_prefix(f"{name}.", state)
    for name, optimizer in model.optimizers.items():
        tensors |= add_prefix(f"adam.{name}.", optimizer_tensors(optimizer))
    names = [f.name for f in fields(Progress) if f.name != "kept_policy"]
    plain = {name: getattr(progress, name) for name in names}
    return tensors, {"progress": plain, "seconds": clock.seconds}


def restore(found: Checkpoint, model: ActorCritic, progress: Progress, clock: Clock) -> None:
    """Take everything from a checkpoint."""
    tensors, plain = found.tensors, found.plain["progress"]
    for role in model.optimizers:
        model.roles.load_state(role, strip_prefix(f"{role}.", tensors))
    if model.value_head:
        model.value_head.load_state_dict(strip_prefix("head.", tensors))
    for name, optimizer in model.optimizers.items():
        load_optimizer(optimizer, strip_prefix(f"adam.{name}.", tensors))
    for name, value in {**plain, "kept": Kept(*plain["kept"])}.items():
        setattr(progress, name, value)
    progress.kept_policy = strip_prefix("kept.", tensors)
    clock.seconds.update(found.plain["seconds"])
