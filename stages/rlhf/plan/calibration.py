"""Speeds of this machine, measured in some seconds at the widths of the model to be trained.

Two layers of a random Llama of these widths run as the model would: in its dtype, with an adapter,
forwards, backwards, and a token at a time. So what is measured includes all that a matrix product
alone leaves out: attention, norms, memory traffic, the cost of launching.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stages.rlhf.config.whole import Model
from stages.rlhf.model.quantized import quantise
from stages.rlhf.model.roles import Roles
from stages.rlhf.plan.footprint import Shape
from stages.rlhf.precision import NF4, SDPA_FLOAT32, WEIGHTS, autocasts, device, products
from stages.rlhf.sizes import LOGITS_TILE

LAYERS = 2
ROW = 64  # tokens of a row
WORDS = 32768  # of the vocabulary at most; the head's time is proportional to it
SECONDS = 0.2  # at least, for each measurement
ADAPTER = "measured"


@dataclass(frozen=True)
class Speeds:
    """Seconds of one layer, and of the head for one word of the vocabulary."""

    forward: float  # per token, without gradients
    train: float  # per token, forwards and backwards: an adapter on frozen weights
    train_full: float  # the same where the weights themselves are trained
    head: float  # per token and word
    head_train: float  # per token and word, forwards and backwards
    step: float  # decoding one token of one row: all that does not grow with the rows
    step_row: float  # what each row adds
    head_step: float  # per word: the head for one row
    head_row: float  # per word: what each row adds


def seconds_of(work: Callable[[], Any], least: float = SECONDS) -> float:
    """Seconds of the fastest of several calls, after one that is not counted.

    The fastest is the one that other processes disturbed least.
    """
    work()
    found: list[float] = []
    while len(found) < 3 or sum(found) < least:
        begin = time.perf_counter()
        work()
        if device() == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found)


def layers_of(shape: Shape, dtype: str) -> Any:
    """Layers of a random Llama of these widths, and next to no vocabulary."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    model = LlamaForCausalLM(config).to(WEIGHTS[dtype])
    if dtype == NF4:
        return quantise(model).requires_grad_(False)
    if device() == "cpu" and autocasts(dtype):
        model.set_attn_implementation(SDPA_FLOAT32)
    return model.to(device()).requires_grad_(False)


def measure(shape: Shape, model: Model, tokens: int = 1024, least: float = SECONDS) -> Speeds:
    """The speeds of this machine for this model, with `tokens` in a pass."""
    mixed = autocasts(model.dtype)
    layers = layers_of(shape, model.dtype)
    batch = torch.ones(max(1, tokens // ROW), ROW, dtype=torch.long, device=layers.device)
    numbers = batch.numel() * LAYERS

    def backward(one: Any) -> None:
        one(input_ids=batch, use_cache=False).logits.float().mean().backward()

    full = 0.0
    if model.sft.method == "full" or model.base:
        layers.requires_grad_(True)
        with products(layers.device, mixed):
            full = seconds_of(lambda: backward(layers), least)
        layers.zero_grad()
        layers.requires_grad_(False)
    roles = Roles(layers, model.lora, mixed)
    roles.add(ADAPTER)
    with roles.use(ADAPTER, train=True) as one:
        train = seconds_of(lambda: backward(one), least)
    with roles.use(ADAPTER) as one, torch.no_grad():
        forward = seconds_of(lambda: one(input_ids=batch, use_cache=False), least)
    rows = model.generate.batch_size
    with torch.no_grad(), roles.merged_copy(ADAPTER) as one:
        single, several = (
            seconds_of(partial(one, input_ids=batch[:1, :1].expand(n, 1)), least) for n in (1, rows)
        )
    each = max(several - single, 0.0) / max(rows - 1, 1)
    return Speeds(
        forward / numbers,
        train / numbers,
        full / numbers,
        *head_speeds(shape, model, tokens, mixed, least),
        (single - each) / LAYERS,
        each / LAYERS,
        *head_steps(shape, model, mixed, least),
    )


def head_speeds(
    shape: Shape, model: Model, tokens: int, mixed: bool, least: float
) -> tuple[float, float]:
    """Seconds per token and word of log-probabilities, forwards alone and with the gradient."""
    rows, columns = LOGITS_TILE.get(device(), LOGITS_TILE["cuda"])
    weight, hidden = operands(shape, model, tokens)
    hidden, words = hidden[:rows].requires_grad_(True), weight.shape[0]

    def forward() -> Tensor:
        parts = [(hidden @ w.T).float().logsumexp(1) for w in weight.split(columns)]
        return torch.stack(parts).logsumexp(0).sum()

    with products(weight.device, mixed):
        with torch.no_grad():
            once = seconds_of(forward, least)
        both = seconds_of(lambda: forward().backward(), least)
    return once / (len(hidden) * words), both / (len(hidden) * words)


def head_steps(shape: Shape, model: Model, mixed: bool, least: float) -> tuple[float, float]:
    """Seconds per word to choose a token: what does not grow with the rows, and what each adds."""
    rows = model.generate.batch_size
    weight, hidden = operands(shape, model, rows)

    def pick(count: int) -> Tensor:
        return (hidden[:count] @ weight.T).float().softmax(1).cumsum(1)[:, -1]

    with torch.no_grad(), products(weight.device, mixed):
        single, several = (seconds_of(partial(pick, n), least) for n in (1, rows))
    each = max(several - single, 0.0) / max(rows - 1, 1)
    return (single - each) / len(weight), each / len(weight)


def operands(shape: Shape, model: Model, rows: int) -> tuple[Tensor, Tensor]:
    """A part of the head, (words, hidden), and hidden states, (rows, hidden)."""
    dtype, where = WEIGHTS[model.dtype], device()
    weight = torch.randn(min(shape.vocab, WORDS), shape.hidden, dtype=dtype, device=where)
    return weight, torch.randn(rows, shape.hidden, dtype=dtype, device=where)
