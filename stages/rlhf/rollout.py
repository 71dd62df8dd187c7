"""One batch of PPO's experience: answers of the policy, and what each role says of them.

B answers, R response tokens.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.rlhf.chat import Codec
from stages.rlhf.config import Ppo
from stages.rlhf.generation import generate_all
from stages.rlhf.models import Roles
from stages.rlhf.ppo_math import gae, token_rewards, whiten
from stages.rlhf.reward import Faults, Penalties, Reward, final_reward
from stages.rlhf.reward_model import RewardModel
from stages.rlhf.runtime import Clock
from stages.rlhf.sequences import Sequences, collate, hidden_states, response_logprobs
from stages.rlhf.text_metrics import copies, loops

POLICY, VALUE = "policy", "value"


class Prompt(NamedTuple):
    """A question and its ids."""

    question: str
    ids: list[int]


@dataclass(frozen=True)
class Rollout:
    """All tensors of one update; rows are answers."""

    sequences: Sequences
    old_logprobs: Tensor  # (B, R)
    ref_logprobs: Tensor  # (B, R)
    old_values: Tensor  # (B, R)
    advantages: Tensor  # (B, R), whitened over the whole batch
    returns: Tensor  # (B, R)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, rows: Any) -> "Rollout":
        """Some of the rows, columns that hold only padding cut off."""
        sequences = self.sequences[rows]
        length = sequences.response.shape[1]
        rest = (getattr(self, f.name)[rows][:, :length] for f in fields(self)[1:])
        return Rollout(sequences, *rest)


def policy_logprobs(roles: Roles, sequences: Sequences, temperature: float) -> Tensor:
    """(B, R) log-probabilities under the role in use: one code path for old, new and reference."""
    return response_logprobs(
        roles.model, hidden_states(roles.model, sequences), sequences, temperature
    )


def token_values(roles: Roles, head: nn.Linear, sequences: Sequences) -> Tensor:
    """(B, R) values of the states from which each response token is taken, value role in use."""
    hidden = hidden_states(roles.model, sequences)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has three digits
        values: Tensor = head(hidden[rows, sequences.predicts].float()).squeeze(-1)
    return torch.where(sequences.response_mask, values, 0)


def in_parts(sequences: Sequences, size: int, function: Any) -> Tensor:
    """Apply a (b, R) function to consecutive parts of `size` rows -> (B, R), padded with 0.

    The parts are those of the first epoch's micro-batches, so that its ratios are exactly 1.
    """
    whole = torch.zeros(sequences.response.shape, device=sequences.ids.device)
    for start in range(0, len(sequences), size):
        part = function(sequences[start : start + size])
        whole[start : start + size, : part.shape[1]] = part
    return whole


def faults_of(prompts: list[Prompt], answers: list[list[int]], codec: Codec) -> Faults:
    """(B,) bool each, on the CPU; a prompt has no reference that would excuse a copy."""
    texts = [codec.text(answer) for answer in answers]
    return Faults(
        torch.tensor([answer[-1] != codec.eos_id for answer in answers]),
        torch.tensor([loops(text) for text in texts]),
        torch.tensor([copies(t, p.question, "") for t, p in zip(texts, prompts, strict=True)]),
    )


@torch.no_grad()
def collect(
    roles: Roles,
    value_head: nn.Linear,
    reward_model: RewardModel,
    codec: Codec,
    prompts: list[Prompt],
    draws: Tensor,
    ppo: Ppo,
    kl_coef: float,
    micro_batch_size: int,
    clock: Clock,
) -> tuple[Rollout, Reward]:
    """Sample an answer to each prompt (`draws` decide them), score it, estimate advantages."""
    ids = [prompt.ids for prompt in prompts]
    with roles.use(POLICY) as policy:
        answers = generate_all(policy, ids, codec, draws.shape[1], len(ids), ppo.temperature, draws)
    clock.lap("generate")
    sequences = collate(ids, answers, codec.pad_id, roles.model.device)

    def logprobs(part: Sequences) -> Tensor:
        return policy_logprobs(roles, part, ppo.temperature)

    with roles.use(POLICY):
        old_logprobs = in_parts(sequences, micro_batch_size, logprobs)
    with roles.use(roles.reference):
        ref_logprobs = in_parts(sequences, micro_batch_size, logprobs)
    with roles.use(VALUE):
        values = in_parts(
            sequences, micro_batch_size, lambda part: token_values(roles, value_head, part)
        )
    scores = reward_model.score([(p, [a]) for p, a in zip(ids, answers, strict=True)], codec)
    reward = final_reward(
        scores.mean.to(values.device),
        scores.variance.to(values.device),
        reward_model.length_offsets(answers).to(values.device),
        Faults(*(fault.to(values.device) for fault in faults_of(prompts, answers, codec))),
        ppo.score_clip,
        ppo.uncertainty_coef,
        Penalties(ppo.missing_eos_penalty, ppo.repetition_penalty, ppo.copy_penalty),
    )
    mask = sequences.response_mask
    rewards = token_rewards(reward.total, old_logprobs, ref_logprobs, mask, kl_coef)
    advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.lam)
    rollout = Rollout(
        sequences, old_logprobs, ref_logprobs, values, whiten(advantages, mask), returns
    )
    clock.lap("score")
    return rollout, reward
