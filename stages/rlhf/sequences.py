"""Prompts with their answers as tensors, and what a model says of the answers' tokens.

B rows, T tokens of prompt and response together, R response tokens, H hidden size.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from stages.rlhf.logprobs import token_logprobs


@dataclass(frozen=True)
class Sequences:
    """Rows of prompt + response, padded on the right, so that no mask is needed to be causal."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    response: Tensor  # (B, R) ids
    response_mask: Tensor  # (B, R) bool
    predicts: Tensor  # (B, R) place in T of the state that predicts each response token
    last: Tensor  # (B,) place in T of the last token

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> "Sequences":
        """Some of the rows, columns that hold only padding cut off."""
        part = Sequences(*(getattr(self, field.name)[rows] for field in fields(self)))
        width, length = int(part.last.max()) + 1, int(part.response_mask.sum(-1).max())
        return Sequences(
            part.ids[:, :width],
            part.mask[:, :width],
            part.response[:, :length],
            part.response_mask[:, :length],
            part.predicts[:, :length].clamp(max=width - 1),
            part.last,
        )


def collate(
    prompts: list[list[int]], responses: list[list[int]], pad_id: int, device: Any = "cpu"
) -> Sequences:
    """B prompts and their B responses -> one padded batch.

    Raises ValueError where a prompt or a response holds no token.
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
    )


def decoder_of(model: Any) -> Any:
    """The decoder within a causal language model, its adapters in it: no head is computed."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()


def hidden_states(model: Any, sequences: Sequences) -> Tensor:
    """(B, T, H): the decoder's last states; the head is not computed."""
    states: Tensor = decoder_of(model)(
        input_ids=sequences.ids, attention_mask=sequences.mask, use_cache=False
    ).last_hidden_state
    return states


def at_response(hidden: Tensor, sequences: Sequences) -> Tensor:
    """(B, T, H) -> (N, H): the states that predict the N response tokens that count."""
    rows = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(sequences.predicts)
    mask = sequences.response_mask
    return hidden[rows[mask], sequences.predicts[mask]]


def response_states(hidden: Tensor, sequences: Sequences) -> Tensor:
    """(B, T, H) -> (N, H): the states at the N response tokens that count, row by row."""
    mask = sequences.response_mask
    rows, steps = mask.nonzero(as_tuple=True)
    first = sequences.last - (mask.sum(-1) - 1)
    return hidden[rows, first[rows] + steps]


def response_logprobs(
    model: Any, hidden: Tensor, sequences: Sequences, temperature: float = 1.0
) -> Tensor:
    """(B, T, H) -> (B, R) fp32 log-probabilities of the response's tokens; 0 on padding."""
    states = at_response(hidden, sequences)
    return logprobs_of(model, states, sequences.response, sequences.response_mask, temperature)


def logprobs_of(
    model: Any, states: Tensor, response: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """States (N, H) of the N tokens that `mask` counts, (B, R) x 2 -> (B, R) fp32; 0 on padding."""
    found = token_logprobs(
        states,
        model.get_output_embeddings().weight,
        response[mask],
        temperature,
        getattr(model.config, "final_logit_softcapping", None) or 0.0,
    )
    return torch.zeros(mask.shape, dtype=found.dtype, device=found.device).masked_scatter(
        mask, found
    )
