"""A PPO run of six updates that tests/test_checkpoints.py kills and goes on with."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from stages.rlhf.model.roles import POLICY, VALUE
from stages.rlhf.ppo.process_group import ProcessGroup
from tests.model_fixtures import PpoTrainer, ppo_knobs, ppo_settings, ppo_trainer


def run(folder: Path, killed_at: int | None = None) -> PpoTrainer:
    """Train; `killed_at` is the update in whose middle the process ends, with no warning."""
    knobs = ppo_knobs(value_warmup=1, evaluate_every=3, kl_target=2.0, kl_horizon=40)
    trainer = ppo_trainer(folder, "lora", ppo=knobs, settings=ppo_settings(updates=6))
    trainer.process_group = ProcessGroup.init()
    inner = trainer._update

    def update(number: int, *given: object, **named: object) -> dict[str, float]:
        if number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(number, *given, **named)

    trainer._update = update  # type: ignore[method-assign]

    def validate() -> dict[str, float]:
        trainer.outcome.said.append([f"after {len(trainer.outcome.updates)}"])
        return {"chrf": float(len(trainer.outcome.updates))}

    best: list[float] = []

    def better(row: dict[str, float]) -> bool:
        best.append(row["chrf"])
        return row["chrf"] == max(best)

    trainer.train(validate, better, folder / "kept")
    trainer.process_group.destroy()
    return trainer


def everything(trainer: PpoTrainer) -> dict[str, Any]:
    """All that must not differ, as plain values or tensors."""
    outcome = trainer.outcome
    found: dict[str, Any] = {
        "updates": outcome.updates,
        "validation": outcome.validation,
        "said": outcome.said,
        "best_update": outcome.best_update,
        "stopped": outcome.stopped,
        "kl_coef": trainer.kl_coef,
        "head": trainer.value_head.weight.detach(),
    }
    states = {role: trainer.roles.state(role) for role in (POLICY, VALUE)}
    for name, state in {**states, "best": outcome.best_state}.items():
        found |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    for name, optimizer in trainer._optimizers().items():
        for i, state in optimizer.state_dict()["state"].items():
            found |= {f"{name}.{i}.{key}": tensor for key, tensor in state.items()}
    return found


def write(found: dict[str, Any], folder: Path) -> None:
    """All of it in two files."""
    tensors = {k: v.contiguous().clone() for k, v in found.items() if isinstance(v, Tensor)}
    save_file(tensors, folder / "result.safetensors")
    plain = {k: v for k, v in found.items() if k not in tensors}
    (folder / "result.json").write_text(json.dumps(plain, sort_keys=True))


if __name__ == "__main__":
    done = run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
    if done.process_group.is_main:
        write(everything(done), Path(sys.argv[1]))
