"""What one of several processes does in test_process_group.py; torchrun starts it, or the test."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.rlhf.model.roles import POLICY, VALUE
from stages.rlhf.ppo.process_group import ProcessGroup
from tests.model_fixtures import ppo_knobs, ppo_trainer


def work(folder: Path) -> None:
    """Collect one rollout and learn from it three times; write what came of it."""
    trainer = ppo_trainer(folder, "lora", ppo=ppo_knobs(epochs=2))
    # from here on: transformers writes the fixture's base in one process alone
    trainer.process_group = process_group = ProcessGroup.init()
    torch.manual_seed(process_group.rank)  # no global draw may count
    prompts = [trainer.prompts[i % len(trainer.prompts)] for i in range(16)]
    rollout, reward = trainer._collect(1, prompts)
    found = {"ids": rollout.sequences.ids, "advantages": rollout.advantages}
    found |= {"returns": rollout.returns, "reward": reward.total}
    for update in (1, 2, 3):
        row = trainer._update(update, rollout, train_policy=True)
        found[f"row{update}"] = torch.tensor(list(row.values()))
    for role in (POLICY, VALUE):
        found |= {f"{role}.{k}": v for k, v in trainer.roles.state(role).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in found.items()}, folder / f"{process_group.rank}.safetensors"
    )
    process_group.destroy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
