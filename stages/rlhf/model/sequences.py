"""Prompts with their responses as tensors, and log-probabilities of the response tokens.

B rows, T tokens of prompt and response together, R response tokens, H hidden size.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.rlhf.model.logprobs import head_logits, token_logprobs


@dataclass(frozen=True)
class Sequences:
    """Rows of prompt + response, right-padded, so that a causal mask suffices."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    response: Tensor  # (B, R) ids
    response_mask: Tensor  # (B, R) bool
    predicts: Tensor  # (B, R) index in T of the state that predicts each response token
    last: Tensor  # (B,) index in T of the last token
    sizes: Tensor  # (B, 2) tokens of prompt and response; on the CPU, so slicing does not sync

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: list[int]) -> "Sequences":
        """A subset of the rows, without columns that are all padding."""
        sizes = self.sizes[rows]
        width, length = int(sizes.sum(-1).max()), int(sizes[:, 1].max())
        at = index_on(rows, self.ids)
        return Sequences(
            self.ids[at, :width],
            self.mask[at, :width],
            self.response[at, :length],
            self.response_mask[at, :length],
            self.predicts[at, :length].clamp(max=width - 1),
            self.last[at],
            sizes,
        )

    def tokens(self) -> tuple[Tensor, Tensor]:
        """(N,) x 2: row and step of the N unmasked response tokens, row by row."""
        counts = self.sizes[:, 1]
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        steps = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        return index_on(rows, self.ids), index_on(steps, self.ids)


def index_on(rows: list[int] | Tensor, like: Tensor) -> Tensor:
    """Indices from the CPU on `like`'s device, without a GPU sync."""
    return torch.as_tensor(rows).to(like.device, non_blocking=True)


def collate(
    prompts: list[list[int]], responses: list[list[int]], pad_id: int, device: Any = "cpu"
) -> Sequences:
    """B prompts and their B responses -> one padded batch.

    Raises ValueError if a prompt or a response has no tokens.
    """
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            raise ValueError(
                f"row {i}: {len(prompt)} prompt and {len(response)} response tokens; expected >= 1"
            )
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    longest = max(map(len, responses))
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    padded = torch.tensor([r + [pad_id] * (longest - len(r)) for r in responses])
    starts = torch.tensor([len(p) for p in prompts])
    lengths = torch.tensor([len(r) for r in responses])
    last = starts + lengths - 1
    steps = torch.arange(longest)[None]
    return Sequences(
        ids.to(device),
        (torch.arange(width)[None] <= last[:, None]).to(device),
        padded.to(device),
        (steps < lengths[:, None]).to(device),
        (starts[:, None] - 1 + steps).clamp(max=width - 1).to(device),
        last.to(device),
        torch.stack([starts, lengths], -1),
    )


def decoder_of(model: Any) -> Any:
    """The decoder of a causal language model, adapters included, without the LM head."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()


def context_window(model: Any) -> int:
    """The most tokens of a row; no bound for a model whose config states none (ALiBi's)."""
    config = model.config
    names = ("max_position_embeddings", "max_seq_len")
    return next((getattr(config, n) for n in names if getattr(config, n, None)), sys.maxsize)


def hidden_states(model: Any, sequences: Sequences) -> Tensor:
    """(B, T, H): last hidden states, without the LM head."""
    states: Tensor = decoder_of(model)(
        input_ids=sequences.ids, attention_mask=sequences.mask, use_cache=False
    ).last_hidden_state
    return states


def response_states(hidden: Tensor, sequences: Sequences) -> Tensor:
    """(B, T, H) -> (N, H): the states at the N unmasked response tokens, row by row."""
    rows, steps = sequences.tokens()
    first = sequences.last - (sequences.response_mask.sum(-1) - 1)
    return hidden[rows, first[rows] + steps]


def response_logprobs(
    model: Any, hidden: Tensor, sequences: Sequences, temperature: float = 1.0
) -> Tensor:
    """(B, T, H) -> (B, R) fp32 log-probabilities of the response's tokens; 0 on padding."""
    rows, steps = sequences.tokens()
    states = hidden[rows, sequences.predicts[rows, steps]]
    targets = sequences.response[rows, steps]
    return logprobs_of(model, states, targets, sequences.response_mask, temperature)


@dataclass(frozen=True)
class Head:
    """The LM head: logits = softcap(scale * (hidden @ weight.T + bias))."""

    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float  # 0: none

    def settings(self, temperature: float) -> tuple[float, float, Tensor | None]:
        """What `logprobs.py` takes after the tensors: the scale is put into the others.

        cap * tanh(s x / cap) / T = (cap / s) * tanh(x / (cap / s)) / (T / s)
        """
        return temperature / self.scale, self.softcap / self.scale, self.bias


def head_of(model: Any) -> Head:
    """The LM head of a causal language model, as its config states it.

    `families.check_model` compares it with the model's own logits when a model is loaded.
    """
    config, layer = model.config, model.get_output_embeddings()
    scale = 1 / (getattr(config, "logits_scaling", None) or 1.0)  # Granite, MiniCPM
    if config.model_type == "hyperclovax":
        scale = config.logits_scaling
    elif config.model_type.startswith("cohere"):
        scale = config.logit_scale or 1.0
    softcap = getattr(config, "final_logit_softcapping", None) or 0.0
    return Head(layer.weight, getattr(layer, "bias", None), scale, softcap)


def next_logits(model: Any, states: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, H) -> (B, V) fp32 logits of the next token."""
    head = head_of(model)
    return head_logits(states, head.weight, *head.settings(temperature))


def logprobs_of(
    model: Any, states: Tensor, targets: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """(N, H), (N,) at the N tokens where `mask` (B, R) -> (B, R) fp32; 0 on padding."""
    head = head_of(model)
    found = token_logprobs(states, head.weight, targets, *head.settings(temperature))
    return torch.zeros(mask.shape, dtype=found.dtype, device=found.device).masked_scatter(
        mask, found
    )
