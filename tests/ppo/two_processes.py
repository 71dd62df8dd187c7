"""What one of several processes does in test_process_group.py; torchrun starts it, or the test."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.rlhf.runs.process_group import ProcessGroup
from tests.model_fixtures import ppo_knobs, ppo_trainer, sampled


def work(folder: Path, advantage: str = "gae") -> None:
    """Sample one rollout and learn from it three times; write what came of it."""
    ppo_trainer(folder, "lora")  # transformers writes the fixture's base in one process alone
    process_group = ProcessGroup.init()
    answers = 1 if advantage == "gae" else 4
    knobs = ppo_knobs(epochs=2, advantage=advantage, answers_per_prompt=answers)
    trainer = ppo_trainer(folder, "lora", ppo=knobs, process_group=process_group)
    torch.manual_seed(process_group.rank)  # no global draw may count
    rollout = sampled(trainer) if answers == 1 else trainer.rollout(1, trainer.prompts_of(1))
    found = {"ids": rollout.sequences.ids, "advantages": rollout.advantages}
    found |= {"reward": rollout.reward.total, "rows": torch.tensor(rollout.rows)}
    if rollout.targets:
        found["returns"] = rollout.targets.returns
    for update in (1, 2, 3):
        found[f"row{update}"] = torch.tensor(trainer.learn(update, rollout))
    for role in trainer.model.optimizers:
        found |= {f"{role}.{k}": v for k, v in trainer.roles.state(role).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in found.items()}, folder / f"{process_group.rank}.safetensors"
    )
    process_group.destroy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), sys.argv[2])
