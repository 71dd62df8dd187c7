"""One batch of PPO's experience: answers of the policy, and what each role says of them.

B answers, R response tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.rlhf.chat import Codec
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.measure.text import copies, loops
from stages.rlhf.model.generation import generate_all
from stages.rlhf.model.packing import by_length
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.model.sequences import (
    Sequences,
    collate,
    hidden_states,
    index_on,
    response_logprobs,
)
from stages.rlhf.ppo.core import gae, token_rewards, whiten
from stages.rlhf.ppo.process_group import ProcessGroup
from stages.rlhf.ppo.reward import Penalties, Reward, Violations, final_reward
from stages.rlhf.reward.model import RewardModel
from stages.rlhf.runtime import Clock

Graphs = dict[str, list[Tensor]]  # by role: (b, R) of a micro-batch each, with all its activations


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

    def __getitem__(self, rows: list[int]) -> "Rollout":
        """Some of the rows, columns that hold only padding cut off."""
        sequences = self.sequences[rows]
        length, at = sequences.response.shape[1], index_on(rows, self.returns)
        rest = (getattr(self, f.name)[at, :length] for f in fields(self)[1:])
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


def micro_batches(sequences: Sequences, rows: list[int], tokens: int) -> list[list[int]]:
    """These rows, like lengths together, in parts of at most `tokens` tokens, padding counted."""
    lengths = sequences.sizes[rows].sum(-1).tolist()
    return [[rows[i] for i in part] for part in by_length(lengths, tokens)]


def minibatches(rows: list[int], settings: PpoScale) -> list[list[int]]:
    """The rows of each optimiser step, in the given order."""
    size = settings.batch_size // settings.minibatches
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def in_parts(
    sequences: Sequences,
    parts: list[list[int]],
    function: Callable[[Sequences], Tensor],
    graphs: list[Tensor] | None = None,
    kept: int = 0,
) -> Tensor:
    """Apply a (b, R) function to these parts' rows -> (B, R), 0 on padding and in other rows.

    What the first `kept` parts give is put into `graphs` as well, ready for a backward pass.
    """
    whole = torch.zeros(sequences.response.shape, device=sequences.ids.device)
    for i, rows in enumerate(parts):
        keeps = graphs is not None and i < kept
        with torch.set_grad_enabled(keeps):
            part = function(sequences[rows])
        if graphs is not None and keeps:
            graphs.append(part)
        whole[index_on(rows, whole), : part.shape[1]] = part.detach()
    return whole


def gather(
    process_group: ProcessGroup, rows: list[int], answers: list[list[int]], shape: Any
) -> list[list[int]]:
    """The answers of all processes; `answers` are this one's, to `rows` of `shape[0]`."""
    said = torch.zeros(shape, dtype=torch.long)
    counts = torch.zeros(shape[0], dtype=torch.long)
    for i, answer in zip(rows, answers, strict=True):
        said[i, : len(answer)] = torch.tensor(answer)
        counts[i] = len(answer)
    process_group.sum([said, counts])
    return [row[:n] for row, n in zip(said.tolist(), counts.tolist(), strict=True)]


def violations_of(prompts: list[Prompt], answers: list[list[int]], codec: Codec) -> Violations:
    """(B,) bool each, on the CPU; a prompt has no reference that would excuse a copy."""
    texts = [codec.text(answer) for answer in answers]
    return Violations(
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
    ppo: PpoConfig,
    kl_coef: float,
    settings: PpoScale,
    process_group: ProcessGroup,
    clock: Clock,
    graphs: Graphs,
) -> tuple[Rollout, Reward]:
    """Sample an answer to each prompt (`draws` decide them), score it, estimate advantages.

    Log-probabilities and values are taken in the micro-batches of the first epoch, so that its
    ratios are exactly 1. For the roles that are keys of `graphs` those of the first minibatch are
    kept, where it has `settings.kept_tokens` tokens or fewer.
    """
    ids = [prompt.ids for prompt in prompts]
    shares = [process_group.shard(rows) for rows in minibatches(list(range(len(ids))), settings)]
    own = [i for share in shares for i in share]
    with roles.merged_copy(POLICY) as policy:
        asked = [ids[i] for i in own]
        made = generate_all(
            policy, asked, codec, draws.shape[1], len(own), ppo.temperature, draws[own]
        )
    answers = gather(process_group, own, made, draws.shape)
    clock.lap("generate")
    sequences = collate(ids, answers, codec.pad_id, roles.model.device)
    parts = [
        part
        for share in shares
        for part in micro_batches(sequences, share, settings.micro_batch_tokens)
    ]

    fits = int(sequences.sizes[shares[0]].sum()) <= settings.kept_tokens
    kept = len(micro_batches(sequences, shares[0], settings.micro_batch_tokens)) if fits else 0

    def logprobs(part: Sequences) -> Tensor:
        return policy_logprobs(roles, part, ppo.temperature)

    def values_of(part: Sequences) -> Tensor:
        return token_values(roles, value_head, part)

    with roles.use(POLICY, train=True):
        old_logprobs = in_parts(sequences, parts, logprobs, graphs.get(POLICY), kept)
    with roles.use(roles.reference):
        ref_logprobs = in_parts(sequences, parts, logprobs)
    with roles.use(VALUE, train=True):
        values = in_parts(sequences, parts, values_of, graphs.get(VALUE), kept)
    scores = reward_model.score([(ids[i], [answers[i]]) for i in own], codec)
    mean, variance = torch.zeros(2, len(ids)).unbind()
    mean[own], variance[own] = scores.mean, scores.variance
    process_group.sum([mean, variance])
    process_group.sum([old_logprobs, ref_logprobs, values])
    device = values.device
    reward = final_reward(
        mean.to(device),
        variance.to(device),
        reward_model.length_offsets(answers).to(device),
        Violations(*(fault.to(device) for fault in violations_of(prompts, answers, codec))),
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
