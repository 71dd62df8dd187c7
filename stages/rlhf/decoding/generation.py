"""Batched decoding with a KV cache: prompts of similar length together, finished rows removed.

Different here: sampling uses one uniform number per (response, position), sampled beforehand from
the response's own seed, so that a response does not depend on the batch it is decoded in.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding import continuous
from stages.rlhf.decoding.static import decoder_for
from stages.rlhf.decoding.tokens import COMPACT_SHARE, choose, cut_after, pad_left
from stages.rlhf.model.sequences import decoder_of, next_logits
from stages.rlhf.records import Response
from stages.rlhf.runs.checkpoints import NO_CHECKPOINTS, Checkpointer
from stages.rlhf.runs.process_group import SINGLE_PROCESS, BatchShard, ProcessGroup
from stages.rlhf.runs.sharding import going_on, most, wait
from stages.rlhf.runtime import derive_seed

Decode = Callable[[list[list[int]], Tensor | None], list[list[int]]]  # of prompts and uniforms


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
    decoder = decoder_of(model)
    if not prompts:
        wait(decoder)
        return []
    _check_draws(temperature, uniforms)
    device = model.device
    ids, mask, positions = pad_left(prompts, codec.pad_id, device)
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(prompts), device=device)  # row of the cache -> response
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    responses = torch.full((len(prompts), max_new_tokens), codec.eos_id, device=device)
    draws = None if uniforms is None else uniforms.to(device)

    for step in range(max_new_tokens):
        going_on(decoder, True)
        states = decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = next_logits(model, states[:, -1], temperature or 1.0)
        chosen = choose(logits, None if draws is None else draws[alive, step])
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
    wait(decoder)
    return [cut_after(row, codec.eos_id) for row in responses.tolist()]


def _check_draws(temperature: float, uniforms: Tensor | None) -> None:
    if (temperature > 0) != (uniforms is not None):
        given = "given" if uniforms is not None else "none"
        raise ValueError(
            f"sampling needs uniforms: temperature is {temperature}, uniforms: {given}"
        )


def _engine(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    scale: GenerationScale,
    temperature: float,
    processes: int,
) -> tuple[int, Decode]:
    """How many of these prompts a process decodes in a call, and what it calls."""
    if scale.engine == "transformers":
        share = -(-max(len(prompts), 1) // processes)
        limits = codec, max_new_tokens, scale.batch_size, temperature
        return share, lambda batch, draws: continuous.generate(model, batch, *limits, draws)
    static = decoder_for(model, codec, prompts, scale.batch_size, max_new_tokens, temperature)
    if static is not None:
        return scale.batch_size, static.generate
    own = codec, max_new_tokens, temperature
    return scale.batch_size, lambda batch, draws: generate(model, batch, *own, draws)


def generate_all(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    scale: GenerationScale,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> list[list[int]]:
    """`generate` for any number of prompts, batched by length; responses in the given order.

    By CUDA graphs on a GPU, and by another engine where `scale` names one; that has all prompts at
    once. Resumes from the checkpointer, whose processes have a batch each at a time.
    """
    _check_draws(temperature, uniforms)
    group = checkpointer.group
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = checkpointer.load()
    done: list[list[int]] = found.plain["responses"] if found else []  # in that order
    batch_size, decode = _engine(
        model, prompts, codec, max_new_tokens, scale, temperature, group.size
    )
    starts = range(len(done), len(order), batch_size * group.size)
    idle_batches = most(decoder_of(model), len(starts)) - len(starts)
    for start in tqdm(starts, desc="generate", delay=5, mininterval=5, leave=False):
        count = min(batch_size * group.size, len(order) - start)
        own = list(range(count))[group.rank * batch_size :][:batch_size]
        rows = [order[start + i] for i in own]
        draws = None if uniforms is None else uniforms[rows]
        batch = [prompts[i] for i in rows]
        made = decode(batch, draws)
        done.extend(BatchShard(group, [own], count).gather_ids(made, max_new_tokens))
        checkpointer.maybe_save(len(done), lambda: ({}, {"responses": done}))
    for _ in range(idle_batches):
        generate(model, [], codec, max_new_tokens)
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
    scale: GenerationScale,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[Response]:
    """Greedy responses to messages, in order."""
    prompts = [codec.prompt_ids(message) for message in messages]
    together = Checkpointer(None, group)
    generated = generate_all(model, prompts, codec, max_new_tokens, scale, checkpointer=together)
    return [to_response(ids, codec) for ids in generated]
