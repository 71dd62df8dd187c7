"""Pretraining of a tiny Llama from scratch: next-token prediction on the corpus.

Different here: documents are not packed. Each is one row from BOS to EOS, and batches have rows of
similar length, so there is no attention across documents and little padding.

A model that is to read passages has lessons after that, questions with passages whose answers alone
are predicted, first those with one passage: it learns to find and copy sooner so (README.md). Half
as many documents along with them keep what was learned by heart.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
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


class Losses(NamedTuple):
    """Of every step; NaN of one without lessons."""

    documents: list[float]
    lessons: list[float]


class Example(NamedTuple):
    """Token ids; those from `first` on are predicted."""

    ids: list[int]
    first: int = 1


def epoch(rows: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches of rows of similar length, in random order; every row once."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rng.random()))
    starts = list(range(0, len(order), size))
    rng.shuffle(starts)
    for start in starts:
        yield [rows[i] for i in order[start : start + size]]


def batches(rows: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Epoch after epoch, without end."""
    while True:
        yield from epoch(rows, size, rng)


def steps_of(settings: Pretraining, lessons: Sequence[Sequence[Example]]) -> int:
    """`settings.steps` on documents, then one pass over each list of lessons."""
    return settings.steps + sum(-(-len(rows) // settings.batch_size) for rows in lessons)


def curriculum(
    documents: Sequence[Example],
    lessons: Sequence[Sequence[Example]],
    settings: Pretraining,
    rng: random.Random,
) -> Iterator[list[list[Example]]]:
    """The batches of each step: documents; after `settings.steps`, half as many, and lessons."""
    size = settings.batch_size
    stream = batches(documents, size, rng)
    for _ in range(settings.steps):
        yield [next(stream)]
    stream = batches(documents, max(1, size // 2), rng)
    for rows in lessons:
        for batch in epoch(rows, size, rng):
            yield [next(stream), batch]


def pad(
    rows: list[list[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids of B rows -> (B, T) ids and (B, T) bool mask on `device`, right-padded."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.to(device)


def predicted(rows: Sequence[Example]) -> int:
    """Tokens that are predicted."""
    return sum(len(row.ids) - row.first for row in rows)


def labels_of(rows: Sequence[Example], ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) ids and mask -> (B, T) ids of what is predicted, -100 elsewhere."""
    firsts = torch.tensor([row.first for row in rows], device=ids.device)[:, None]
    before = torch.arange(ids.shape[1], device=ids.device)[None] < firsts
    return ids.masked_fill(~mask | before, -100)


def loss_of(model: Any, rows: Sequence[Example], pad_id: int) -> Tensor:
    """Mean cross-entropy of what is predicted; of lessons the head sees the answers alone."""
    ids, mask = pad([row.ids for row in rows], pad_id, model.device)
    labels = labels_of(rows, ids, mask)
    if all(row.first == 1 for row in rows):
        whole: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return whole
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    answers = labels[:, 1:] != -100
    return cross_entropy(model.lm_head(states[answers]).float(), labels[:, 1:][answers])


def pretrain(
    model: Any,
    documents: Sequence[Example],
    pad_id: int,
    settings: Pretraining,
    rng: random.Random,
    autocast: bool = False,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
    lessons: Sequence[Sequence[Example]] = (),
) -> Losses:
    """Train in place with AdamW; returns the losses of every step. Resumes from a checkpoint.

    The checkpointer's processes have a shard of each batch. Raises ValueError without a document.
    """
    if not documents:
        raise ValueError("the corpus is empty: expected at least one document")
    processes = checkpointer.group
    fewest = min(settings.batch_size, len(documents))
    processes.check_rows(fewest, "base.batch_size, or all documents,")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    steps = steps_of(settings, lessons)
    stream = curriculum(documents, lessons, settings, rng)
    losses: list[Tensor] = []  # (2,): documents', lessons' or NaN
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
    progress = tqdm(range(len(losses), steps), desc="pretrain", mininterval=5)
    for step in progress:
        factor = cosine_schedule(step, steps, max(1, steps // 20))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        of_step: list[Tensor] = []
        for batch in next(stream):
            own = processes.shard(batch)
            loss = torch.zeros((), device=model.device)
            if own:
                with products(model.device, autocast):
                    loss = loss_of(model, own, pad_id)
                loss = loss * (predicted(own) / predicted(batch))
                loss.backward()
            of_step.append(loss.detach())
        processes.sum(of_step)
        processes.sum_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        of_step += [torch.full_like(of_step[0], torch.nan)] * (2 - len(of_step))
        losses.append(torch.stack(of_step))
        if step % 50 == 0:
            progress.set_postfix(loss=f"{of_step[0].item():.3f}")
        checkpointer.maybe_save(step + 1, state)
    model.eval().requires_grad_(False)
    return Losses(*torch.stack(losses).T.tolist())
