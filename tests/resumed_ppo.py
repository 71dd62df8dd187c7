"""A PPO run of six updates that tests/test_checkpoints.py kills and goes on with."""

import os
import signal
import sys
from pathlib import Path

from stages.rlhf.team import Team
from tests.model_fixtures import PpoTrainer, ppo_knobs, ppo_settings, ppo_trainer


def run(folder: Path, killed_at: int | None = None) -> PpoTrainer:
    """Train; `killed_at` is the update in whose middle the process ends, with no warning."""
    knobs = ppo_knobs(value_warmup=1, evaluate_every=3, kl_target=2.0, kl_horizon=40)
    trainer = ppo_trainer(folder, "lora", ppo=knobs, settings=ppo_settings(updates=6))
    trainer.team = Team.join()
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
    trainer.team.leave()
    return trainer


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
