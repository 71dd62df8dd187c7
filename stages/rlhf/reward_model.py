"""The reward model: an adapter on the frozen SFT backbone and a small head.

score = w . h_last  [+ a * mean log-probability of the answer's tokens + b * the least of them]

The terms in brackets are the hybrid head's: the adapter's own language model head says how likely
the answer's tokens are, so that a fact which the backbone knows but no ranked pair has shown still
counts. h_last is the state at the last attended token, the answer's EOS.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.rlhf.chat import Codec
from stages.rlhf.models import Roles
from stages.rlhf.sequences import Sequences, collate, hidden_states, response_logprobs

ROLE = "reward"


class Head(nn.Module):
    """From hidden states and token log-probabilities to one number per answer."""

    def __init__(self, hidden_size: int, hybrid: bool) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1, bias=False)
        self.fluency = nn.Parameter(torch.tensor([1.0, 0.5])) if hybrid else None
        nn.init.normal_(self.value.weight, std=1 / (hidden_size + 1) ** 0.5)

    def forward(self, last: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
        """(B, H), (B, R) x 2 -> (B,)."""
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has three digits
            scores: Tensor = self.value(last.float()).squeeze(-1)
        if self.fluency is None:
            return scores
        mean = torch.where(mask, logprobs, 0).sum(-1) / mask.sum(-1)
        least = torch.where(mask, logprobs, 0).min(-1).values
        return scores + self.fluency[0] * mean + self.fluency[1] * least


@dataclass
class RewardModel:
    """A head, and the adapter `reward` of the roles it was trained with.

    `mean` and `sd` are the raw score's over answers that SFT samples for validation prompts.
    """

    roles: Roles
    head: Head
    mean: float = 0.0
    sd: float = 1.0

    def forward(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Raw scores (B,) and token log-probabilities (B, R); call inside `roles.use(ROLE)`."""
        hidden = hidden_states(self.roles.model, sequences)
        logprobs = response_logprobs(self.roles.model, hidden, sequences)
        last = hidden[torch.arange(len(hidden), device=hidden.device), sequences.last]
        return self.head(last, logprobs, sequences.response_mask), logprobs

    @torch.no_grad()
    def score(
        self, prompts: list[list[int]], answers: list[list[int]], codec: Codec, batch_size: int
    ) -> Tensor:
        """(N,) raw scores of N answers, on the CPU.

        Raises ValueError naming the first answer whose score is not finite.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
        scores = torch.empty(len(prompts))
        with self.roles.use(ROLE) as model:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = collate(
                    [prompts[i] for i in rows],
                    [answers[i] for i in rows],
                    codec.pad_id,
                    model.device,
                )
                scores[rows] = self.forward(batch)[0].cpu()
        if not scores.isfinite().all():
            first = int((~scores.isfinite()).nonzero()[0])
            raise ValueError(f"score of answer {first} is {scores[first]}: {answers[first]}")
        return scores

    def normalise(self, scores: Tensor) -> Tensor:
        """Raw scores -> standard deviations above the mean of SFT's own answers."""
        return (scores - self.mean) / self.sd

    def save(self, folder: Path) -> None:
        """Write the adapter, head.safetensors and reward.json."""
        self.roles.save(ROLE, folder)
        state = {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        save_file(state, folder / "head.safetensors")
        figures = {"mean": self.mean, "sd": self.sd, "hybrid": self.head.fluency is not None}
        (folder / "reward.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def new_reward_model(roles: Roles, head: str) -> RewardModel:
    """An untrained one: a copy of the reference's adapter, or a new one, and a random head."""
    roles.add(ROLE, like=roles.reference)
    made = Head(roles.model.config.hidden_size, hybrid=head == "hybrid").to(roles.model.device)
    return RewardModel(roles, made)


def load_reward_model(roles: Roles, folder: Path) -> RewardModel:
    """Read a reward model onto the backbone it was trained with (`models.check_card` tells)."""
    roles.load(ROLE, folder)
    figures: dict[str, Any] = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    head = Head(roles.model.config.hidden_size, hybrid=figures["hybrid"])
    head.load_state_dict(load_file(folder / "head.safetensors"))
    head = head.to(roles.model.device).eval().requires_grad_(False)
    return RewardModel(roles, head, figures["mean"], figures["sd"])
