"""What an update learns from: the rollout, and the three ways the models read it.

In the order of an update: `sample` responses, `Forward` passes for their log-probabilities and
values, `score_responses`. `trainer.PpoTrainer.rollout` calls them and does the arithmetic.
B responses, b of them in a micro-batch, R response tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.evidence.evidence import Evidence
from stages.rlhf.measure.violations import copies, loops
from stages.rlhf.model.packing import by_length
from stages.rlhf.model.sequences import Sequences, index_on
from stages.rlhf.ppo.reward import Penalties, Reward, Violations, final_reward
from stages.rlhf.records import PromptRow
from stages.rlhf.reward.model import RewardModel
from stages.rlhf.runs.process_group import BatchShard
from stages.rlhf.runs.sharding import in_step
from stages.rlhf.runtime import derive_seed


class Prompt(NamedTuple):
    """A question, the ids of the prompt that asks it, and the passages in that prompt."""

    question: str
    ids: list[int]
    passages: tuple[str, ...] = ()


class Targets(NamedTuple):
    """What the value model learns from."""

    old_values: Tensor  # (B, R)
    returns: Tensor  # (B, R)


@dataclass(frozen=True)
class Minibatch:
    """What an optimiser step needs of some responses."""

    sequences: Sequences
    old_logprobs: Tensor  # (b, R)
    advantages: Tensor  # (b, R)
    targets: "Targets | None"


@dataclass(frozen=True)
class Rollout:
    """All tensors of one update; padding is 0 in each."""

    sequences: Sequences
    reward: Reward  # (B,) each
    old_logprobs: Tensor  # (B, R) under the policy that sampled
    ref_logprobs: Tensor  # (B, R) under the reference, SFT
    advantages: Tensor  # (B, R)
    targets: Targets | None  # None without a value model
    rows: list[int]  # those there is something to learn from

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, rows: list[int]) -> Minibatch:
        """Some of the rows; columns that hold only padding are cut off."""
        sequences = self.sequences[rows]
        length, at = sequences.response.shape[1], index_on(rows, self.advantages)
        targets = self.targets and Targets(*(tensor[at, :length] for tensor in self.targets))
        old, advantages = (t[at, :length] for t in (self.old_logprobs, self.advantages))
        return Minibatch(sequences, old, advantages, targets)


# Step 1: responses


def prompt_of(row: PromptRow, codec: Codec) -> Prompt:
    """A row as PPO reads it."""
    return Prompt(row.question, codec.prompt_ids(row.message), row.passages or ())


def encode_prompts(
    rows: Sequence[PromptRow], codec: Codec, max_new_tokens: int, window: int
) -> list[Prompt]:
    """Raises ValueError where there are none, or one leaves no room for a response."""
    if not rows:
        raise ValueError("no prompts to train PPO on: ppo/train.jsonl is empty")
    prompts = [prompt_of(row, codec) for row in rows]
    for prompt in prompts:
        if len(prompt.ids) + max_new_tokens > window:
            raise ValueError(
                f"ppo/train.jsonl: a prompt of {len(prompt.ids)} tokens and a response of"
                f" {max_new_tokens} exceed the model's window of {window}:"
                f" {prompt.question[:60]!r}"
            )
    return prompts


def prompt_batch(prompts: list[Prompt], number: int, size: int, seed: int) -> list[Prompt]:
    """The batch of that number, from 0: each epoch takes every prompt once, in a new order."""
    count, start = len(prompts), number * size
    order: list[int] = []
    for epoch in range(start // count, (start + size - 1) // count + 1):
        rng = random.Random(derive_seed(seed, "ppo", "order", epoch))
        order += rng.sample(range(count), count)
    return [prompts[i] for i in order[start % count :][:size]]


def sample(
    policy: Any,
    prompts: list[Prompt],
    uniforms: Tensor,
    codec: Codec,
    temperature: float,
    shard: BatchShard,
    scale: GenerationScale,
) -> list[list[int]]:
    """B prompts, (B, R) uniforms that decide each token -> B responses of at most R ids.

    As many at once as `scale` says, as the KV cache of all may not fit.
    """
    own, longest = shard.rows, uniforms.shape[1]
    ids = [prompts[i].ids for i in own]
    made = generate_all(policy, ids, codec, longest, scale, temperature, uniforms[own])
    return shard.gather_ids(made, longest)


# Step 2: log-probabilities under policy and reference, values


def micro_batches(sequences: Sequences, rows: list[int], tokens: int) -> list[list[int]]:
    """These rows, like lengths together, in parts of at most `tokens` tokens, padding counted."""
    lengths = sequences.sizes[rows].sum(-1).tolist()
    return [[rows[i] for i in part] for part in by_length(lengths, tokens)]


def minibatches(rows: Sequence[int], settings: PpoScale) -> list[list[int]]:
    """The rows of each optimiser step, in the given order: as many steps as their number fills."""
    size = settings.batch_size // settings.minibatches
    steps = -(-len(rows) // size)
    ends = [len(rows) * step // steps for step in range(steps + 1)] if steps else []
    return [list(rows[start:end]) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Forward:
    """Forward passes over all rows, in the micro-batches that the first epoch will take.

    A row's last digits depend on the rows batched with it: only so are its first ratios exactly 1.
    """

    decoder: Any
    sequences: Sequences  # B responses
    shard: BatchShard
    micro_batch_tokens: int

    def __call__(self, function: Callable[[Sequences], Tensor]) -> Tensor:
        """Apply a (b, R) function to every row -> (B, R), 0 on padding."""
        sequences = self.sequences
        whole = torch.zeros(sequences.response.shape, device=sequences.ids.device)  # (B, R)
        for minibatch in self.shard.minibatches:
            parts = micro_batches(sequences, minibatch, self.micro_batch_tokens)
            for rows in in_step(self.decoder, parts):
                part = function(sequences[rows])  # (b, up to R)
                whole[index_on(rows, whole), : part.shape[1]] = part
        self.shard.group.sum([whole])
        return whole


# Step 3: rewards


def violations_of(prompts: list[Prompt], responses: list[list[int]], codec: Codec) -> Violations:
    """(B,) bool each, on the CPU; a prompt has no reference that would excuse a copy."""
    texts = [codec.text(response) for response in responses]
    return Violations(
        torch.tensor([response[-1] != codec.eos_id for response in responses]),
        torch.tensor([loops(text) for text in texts]),
        torch.tensor([copies(t, p.question, "") for t, p in zip(texts, prompts, strict=True)]),
    )


def score_responses(
    reward_model: RewardModel,
    prompts: list[Prompt],
    responses: list[list[int]],
    codec: Codec,
    ppo: PpoConfig,
    penalties: Penalties,
    shard: BatchShard,
    evidence: Evidence | None = None,
    weight: float = 0.0,
) -> Reward:
    """B prompts, B responses -> (B,) each, on the model's device; `weight` of the evidence."""
    own = [(prompts[i].ids, [responses[i]]) for i in shard.rows]
    scores = reward_model.score(own, codec)  # mean and variance over the members, (own rows,)
    device = reward_model.roles.model.device
    violations = violations_of(prompts, responses, codec)
    found = [
        evidence(prompt.question, prompt.passages, codec.text(ids)) if evidence else 0.0
        for prompt, ids in zip(prompts, responses, strict=True)
    ]
    return final_reward(
        shard.gather(scores.mean).to(device),
        shard.gather(scores.variance).to(device),
        reward_model.length_offsets(responses).to(device),
        weight * torch.tensor(found, device=device),
        Violations(*(flags.to(device) for flags in violations)),
        ppo.score_clip,
        ppo.uncertainty_coef,
        penalties,
    )
