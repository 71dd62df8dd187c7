"""Batched decoding with a KV cache: prompts of similar length together, finished rows removed.

Different here: sampling uses one uniform number per (response, position), sampled beforehand from
the response's own seed, so that a response does not depend on the batch it is decoded in.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache

from stages.rlhf.chat import Codec
from stages.rlhf.model.sequences import decoder_of, next_logits
from stages.rlhf.records import Response
from stages.rlhf.runs.checkpoints import NO_CHECKPOINTS, Checkpointer
from stages.rlhf.runs.process_group import SINGLE_PROCESS, BatchShard, ProcessGroup
from stages.rlhf.runtime import derive_seed

BLOCK = 256  # tokens whose probabilities are summed together when one is sampled
COMPACT_SHARE = 0.25  # finished rows leave the cache once they are this share of the batch


def draw_uniforms(count: int, length: int, *seed: object) -> Tensor:
    """(count, length) uniforms; row i depends only on the seed (*seed, i)."""
    rows = torch.empty(count, length)
    for i in range(count):
        torch.rand(
            length, generator=torch.Generator().manual_seed(derive_seed(*seed, i)), out=rows[i]
        )
    return rows


@torch.no_grad()
@torch.autocast("cpu", enabled=False)  # decoding steps are too small to gain from it
def generate(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
) -> list[list[int]]:
    """One batch: prompt ids -> response ids, including EOS if the model produced it.

    `temperature` 0 is greedy; otherwise `uniforms` (B, max_new_tokens) determine every token.
    Raises ValueError if only one of the two is given.
    """
    if not prompts:
        return []
    if (temperature > 0) != (uniforms is not None):
        given = "given" if uniforms is not None else "none"
        raise ValueError(
            f"sampling needs uniforms: temperature is {temperature}, uniforms: {given}"
        )
    device = model.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[codec.pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(prompts), device=device)  # row of the cache -> response
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    responses = torch.full((len(prompts), max_new_tokens), codec.eos_id, device=device)
    draws = None if uniforms is None else uniforms.to(device)

    for step in range(max_new_tokens):
        states = decoder_of(model)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = next_logits(model, states[:, -1], temperature or 1.0)
        chosen = logits.argmax(-1) if draws is None else pick(logits, draws[alive, step])
        responses[alive, step] = torch.where(done, codec.eos_id, chosen)
        done = done | (chosen == codec.eos_id)
        finished = int(done.sum())
        if finished == len(alive):
            break
        if finished >= COMPACT_SHARE * len(alive):
            keep = (~done).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, done, chosen = alive[keep], done[keep], chosen[keep]
            mask, positions = mask[keep], positions[keep]
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = positions[:, -1:] + 1
    return [cut_after(row, codec.eos_id) for row in responses.tolist()]


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """(B, V), (B,) -> (B,): the token where the cumulative probability exceeds the uniform.

    Found in two steps, the block and then the token in it, so that float64 sums are of one block.
    """
    mass = (logits - logits.amax(-1, keepdim=True)).exp_()
    blocks = functional.pad(mass, (0, -mass.shape[-1] % BLOCK)).view(len(mass), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)  # (B, blocks)
    target = uniforms.double()[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=blocks.shape[1] - 1)  # (B, 1)
    end = ends.gather(-1, block)
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0)
    own = blocks[torch.arange(len(mass), device=mass.device), block[:, 0]].double().cumsum(-1)
    within = (target - start) / (end - start) * own[:, -1:]  # the two sums differ in last digits
    step = torch.searchsorted(own, within, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + step).squeeze(-1).clamp(max=mass.shape[-1] - 1)


def cut_after(ids: list[int], eos_id: int) -> list[int]:
    """Everything up to and including the first EOS."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def generate_all(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> list[list[int]]:
    """`generate` for any number of prompts, batched by length; responses in the given order.

    Resumes from the checkpointer, whose processes have a batch each at a time.
    """
    group = checkpointer.group
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = checkpointer.load()
    done: list[list[int]] = found.plain["responses"] if found else []  # in that order
    starts = range(len(done), len(order), batch_size * group.size)
    for start in tqdm(starts, desc="generate", delay=5, mininterval=5, leave=False):
        count = min(batch_size * group.size, len(order) - start)
        own = list(range(count))[group.rank * batch_size :][:batch_size]
        rows = [order[start + i] for i in own]
        draws = None if uniforms is None else uniforms[rows]
        batch = [prompts[i] for i in rows]
        made = generate(model, batch, codec, max_new_tokens, temperature, draws)
        done.extend(BatchShard(group, [own], count).gather_ids(made, max_new_tokens))
        checkpointer.maybe_save(len(done), lambda: ({}, {"responses": done}))
    responses: list[list[int]] = [[] for _ in prompts]
    for i, response in zip(order, done, strict=True):
        responses[i] = response
    return responses


def to_response(ids: list[int], codec: Codec) -> Response:
    """Generated ids, decoded."""
    return Response(codec.text(ids), len(ids), bool(ids) and ids[-1] == codec.eos_id)


def greedy_responses(
    model: Any,
    codec: Codec,
    messages: list[str],
    max_new_tokens: int,
    batch_size: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[Response]:
    """Greedy responses to messages, in order."""
    prompts = [codec.prompt_ids(message) for message in messages]
    together = Checkpointer(None, group)
    generated = generate_all(
        model, prompts, codec, max_new_tokens, batch_size, checkpointer=together
    )
    return [to_response(ids, codec) for ids in generated]
