"""Pretraining of a tiny Llama from scratch: next-token prediction on the corpus.

Different here: documents are not packed. Each is one row from BOS to EOS, and batches have rows of
similar length, so there is no attention across documents and little padding.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from stages.rlhf.config.models import Architecture, Pretraining
from stages.rlhf.precision import products
from stages.rlhf.runs.checkpoints import (
    NO_CHECKPOINTS,
    Checkpointer,
    State,
    add_prefix,
    load_optimizer,
    optimizer_tensors,
    strip_prefix,
)
from stages.rlhf.train.schedule import cosine_schedule


def new_llama(architecture: Architecture, codec_ids: dict[str, int], max_length: int) -> Any:
    """A randomly initialised Llama with tied embeddings; `codec_ids` are pad, bos and eos ids."""
    config = LlamaConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=architecture.hidden_size**-0.5 / 2,
        **codec_ids,
    )
    return LlamaForCausalLM(config)


def batches(rows: list[list[int]], size: int, rng: random.Random) -> Iterator[list[list[int]]]:
    """Endless batches of rows of similar length, in random order; every row once per epoch."""
    while True:
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rng.random()))
        starts = list(range(0, len(order), size))
        rng.shuffle(starts)
        for start in starts:
            yield [rows[i] for i in order[start : start + size]]


def pad(
    rows: list[list[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids of B rows -> (B, T) ids and (B, T) bool mask on `device`, right-padded."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.to(device)


def predicted(rows: list[list[int]]) -> int:
    """Tokens that are predicted: all but each row's first."""
    return sum(len(row) - 1 for row in rows)


def pretrain(
    model: Any,
    rows: list[list[int]],
    pad_id: int,
    settings: Pretraining,
    rng: random.Random,
    autocast: bool = False,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> list[float]:
    """Train in place with AdamW; returns the loss of every step. Resumes from a checkpoint.

    The checkpointer's processes have a shard of each batch. Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("the corpus is empty: expected at least one document")
    processes = checkpointer.group
    processes.check_rows(min(settings.batch_size, len(rows)), "base.batch_size, or all documents,")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    stream = batches(rows, settings.batch_size, rng)
    losses: list[Tensor] = []
    model.train().requires_grad_(True)
    weights = dict(model.named_parameters())

    def state() -> State:
        return {
            "losses": torch.stack(losses),
            **add_prefix("weight.", weights),
            **add_prefix("adam.", optimizer_tensors(optimizer)),
        }, {}

    if found := checkpointer.load():
        losses = list(found.tensors["losses"].to(model.device))
        with torch.no_grad():
            for name, tensor in strip_prefix("weight.", found.tensors).items():
                weights[name].copy_(tensor)
        load_optimizer(optimizer, strip_prefix("adam.", found.tensors))
        for _ in losses:
            next(stream)
    progress = tqdm(range(len(losses), settings.steps), desc="pretrain", mininterval=5)
    for step in progress:
        factor = cosine_schedule(step, settings.steps, max(1, settings.steps // 20))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        batch = next(stream)
        own = processes.shard(batch)
        loss = torch.zeros((), device=model.device)
        if own:
            ids, mask = pad(own, pad_id, model.device)
            labels = ids.masked_fill(~mask, -100)
            with products(model.device, autocast):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss = loss * (predicted(own) / predicted(batch))
            loss.backward()
        loss = loss.detach()
        processes.sum([loss])
        processes.sum_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        checkpointer.maybe_save(step + 1, state)
    model.eval().requires_grad_(False)
    return [float(loss) for loss in losses]
