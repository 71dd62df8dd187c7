"""What one process of a team does in tests/test_team.py; torchrun starts it, or the test itself."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.rlhf.model.roles import POLICY, VALUE
from stages.rlhf.ppo.process_group import Team
from tests.model_fixtures import ppo_knobs, ppo_trainer


def work(folder: Path) -> None:
    """Collect one rollout and learn from it three times; write what came of it."""
    trainer = ppo_trainer(folder, "lora", ppo=ppo_knobs(epochs=2))
    trainer.team = team = Team.join()  # transformers writes the fixture's base in one process alone
    torch.manual_seed(team.rank)  # no global draw may count
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
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{team.rank}.safetensors")
    team.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
