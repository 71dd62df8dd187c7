"""Log-probabilities of given tokens, without ever holding a (B, T, V) tensor.

N rows, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

TILE_ELEMENTS = 2**24  # logits in memory at once: 64 MiB in fp32


class _TiledLogprobs(torch.autograd.Function):
    """log softmax(softcap(hidden @ weight.T) / temperature)[targets], tile by tile.

    The backward pass makes each tile's logits again; only `hidden` gets a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        softcap: float,
    ) -> Tensor:
        rows = max(1, TILE_ELEMENTS // weight.shape[0])
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for i in range(0, len(targets), rows):
            logits = _logits(hidden[i : i + rows], weight, temperature, softcap)
            chosen = logits.gather(-1, targets[i : i + rows, None]).squeeze(-1)
            logprobs[i : i + rows] = chosen - torch.logsumexp(logits, -1)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.knobs = temperature, softcap, rows
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, targets = ctx.saved_tensors
        temperature, softcap, rows = ctx.knobs
        grad_hidden = torch.empty_like(hidden)
        for i in range(0, len(targets), rows):
            logits = _logits(hidden[i : i + rows], weight, temperature, softcap)
            # d logprob / d logits = one_hot(target) - softmax(logits)
            slope = -torch.softmax(logits, -1)
            slope[torch.arange(len(slope)), targets[i : i + rows]] += 1
            slope *= grad[i : i + rows, None] / temperature
            if softcap:
                slope *= 1 - (logits * temperature / softcap) ** 2
            grad_hidden[i : i + rows] = slope.to(weight.dtype) @ weight
        return grad_hidden, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, softcap: float) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):  # log-probabilities need the digits
        logits = (hidden.to(weight.dtype) @ weight.T).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, softcap: float = 0.0
) -> Tensor:
    """(N, H), (V, H), (N,) -> (N,) fp32 log-probabilities of `targets`.

    `softcap` is Gemma-2's final logit soft-cap, 0 for none. The head is frozen: `weight` gets no
    gradient. Equal to gather(log_softmax(logits)); see tests/test_logprobs.py.
    """
    if weight.requires_grad:
        raise ValueError("token_logprobs gives the head no gradient; freeze it or compute logits")
    logprobs: Tensor = _TiledLogprobs.apply(hidden, weight, targets, temperature, softcap)
    return logprobs
