"""A PPO run of six updates that tests/runs/test_checkpoints.py kills and goes on with."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from stages.rlhf.ppo.rollout import Rollout
from stages.rlhf.ppo.selection import Kept
from stages.rlhf.ppo.stats import StepStats
from stages.rlhf.ppo.validation import Validation
from stages.rlhf.runs.process_group import ProcessGroup
from tests.model_fixtures import PpoTrainer, ppo_knobs, ppo_settings, ppo_trainer


def run(folder: Path, killed_at: int | None = None, advantage: str = "gae") -> PpoTrainer:
    """Train; `killed_at` is the update in whose middle the process ends, with no warning."""
    knobs = ppo_knobs(value_warmup=1, evaluate_every=3, kl_target=2.0, kl_horizon=40)
    if advantage != "gae":
        knobs = knobs.model_copy(update={"advantage": advantage, "answers_per_prompt": 4})
    ppo_trainer(folder, "lora")  # transformers writes the fixture's base in one process alone
    group = ProcessGroup.init()
    settings = ppo_settings(updates=6)
    trainer = ppo_trainer(folder, "lora", ppo=knobs, settings=settings, process_group=group)
    learn = trainer.learn

    def learn_or_die(update: int, rollout: Rollout) -> StepStats:
        if update == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(update, rollout)

    trainer.learn = learn_or_die  # type: ignore[method-assign]

    def validate() -> Validation:
        done = len(trainer.progress.updates)
        return Validation({"chrf": float(done)}, [f"after {done}"])

    def decide(rows: list[dict[str, float]]) -> Kept:
        return Kept(int(max(rows, key=lambda row: row["chrf"])["update"]), "the most updates")

    trainer.train(validate, decide, folder / "kept")
    group.destroy()
    return trainer


def everything(trainer: PpoTrainer) -> dict[str, Any]:
    """All that must not differ, as plain values or tensors."""
    model, progress = trainer.model, trainer.progress
    found: dict[str, Any] = dict(vars(progress))
    if model.value_head:
        found["head"] = model.value_head.weight.detach()
    states = {role: trainer.roles.state(role) for role in model.optimizers}
    for name, state in {**states, "kept": found.pop("kept_policy")}.items():
        found |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    for name, optimizer in model.optimizers.items():
        for i, moments in optimizer.state_dict()["state"].items():
            found |= {f"adam.{name}.{i}.{key}": tensor for key, tensor in moments.items()}
    return found


def write(found: dict[str, Any], folder: Path) -> None:
    """All of it in two files."""
    tensors = {k: v.contiguous().clone() for k, v in found.items() if isinstance(v, Tensor)}
    save_file(tensors, folder / "result.safetensors")
    plain = {k: v for k, v in found.items() if k not in tensors}
    (folder / "result.json").write_text(json.dumps(plain, sort_keys=True))


if __name__ == "__main__":
    done = run(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
    if done.process_group.is_main:
        write(everything(done), Path(sys.argv[1]))
