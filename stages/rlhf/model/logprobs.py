"""Log-probabilities of given tokens, without materialising a (B, T, V) tensor.

N rows, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from stages.rlhf.sizes import LOGITS_TILE


def head_logits(hidden: Tensor, weight: Tensor, temperature: float, softcap: float) -> Tensor:
    """(N, H), (V, H) -> (N, V) fp32: soft-capped, then divided by the temperature."""
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 logits lack precision
        logits = (hidden.to(weight.dtype) @ weight.T).float()
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits.div_(temperature)


class _TiledLogprobs(torch.autograd.Function):
    """log softmax(softcap(hidden @ weight.T) / temperature)[targets], tile by tile.

    A log-probability is a scalar, so its gradient with respect to its own row of `hidden` is
    computed in the forward pass from the same tiles, and the backward pass only scales it: logits
    are never recomputed. Sums over the vocabulary use online softmax, relative to the highest logit
    so far (Milakov and Gimelshein 2018, arXiv 1805.02867).
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
        rows = LOGITS_TILE.get(hidden.device.type, LOGITS_TILE["cuda"])[0]
        found = [
            _logprobs_and_gradients(
                hidden[i : i + rows],
                weight,
                targets[i : i + rows],
                temperature,
                softcap,
                ctx.needs_input_grad[0],
            )
            for i in range(0, max(len(targets), 1), rows)
        ]
        logprobs, gradients = zip(*found, strict=True)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * grads[0][:, None]).to(gradients.dtype), None, None, None, None


def _logprobs_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(N, H), (V, H), (N,) -> (N,) logprobs and (N, H) d logp / d hidden, empty if not needed.

    d logp / d hidden = (weight[target] - sum_v p_v weight[v]) / temperature; with a soft-cap, each
    token's weight is multiplied by the cap's derivative at its logit.
    """
    columns = LOGITS_TILE.get(hidden.device.type, LOGITS_TILE["cuda"])[1]
    chosen = torch.zeros(len(targets), device=hidden.device)
    highest, total = torch.full_like(chosen, -torch.inf), torch.zeros_like(chosen)
    mean = torch.zeros(hidden.shape if needs_gradient else (0,), device=hidden.device)
    for j in range(0, len(weight), columns):
        part = weight[j : j + columns]
        logits = head_logits(hidden, part, temperature, softcap)
        column = targets - j
        in_tile = (column >= 0) & (column < len(part))
        index = column.clamp(0, len(part) - 1)[:, None]
        chosen = torch.where(in_tile, logits.gather(-1, index).squeeze(-1), chosen)
        top = torch.maximum(highest, logits.amax(-1))
        rescale = (highest - top).exp_()
        cap_grad = _cap_grad(logits, temperature, softcap) if needs_gradient and softcap else None
        shares = logits.sub_(top[:, None]).exp_()
        total = total * rescale + shares.sum(-1)
        if needs_gradient:
            if cap_grad is not None:
                shares *= cap_grad
            mean = mean * rescale[:, None] + (shares.to(part.dtype) @ part).float()
        highest = top
    logprobs = chosen - highest - total.log()
    if not needs_gradient:
        return logprobs, mean
    own = weight[targets].float()
    if softcap:
        own *= _cap_grad(chosen, temperature, softcap)[:, None]
    return logprobs, ((own - mean / total[:, None]) / temperature).to(hidden.dtype)


def _cap_grad(logits: Tensor, temperature: float, softcap: float) -> Tensor:
    """Derivative of the soft-cap at its outputs `logits` (after division by the temperature)."""
    return 1 - (logits * (temperature / softcap)) ** 2


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, softcap: float = 0.0
) -> Tensor:
    """(N, H), (V, H), (N,) -> (N,) fp32 log-probabilities of `targets`.

    `softcap` is Gemma-2's final logit soft-cap, 0 for none. Equal to gather(log_softmax(logits)).
    Raises ValueError if `weight` requires a gradient: the head must be frozen.
    """
    if weight.requires_grad:
        raise ValueError("token_logprobs gives the head no gradient; freeze it or use full logits")
    logprobs: Tensor = _TiledLogprobs.apply(hidden, weight, targets, temperature, softcap)
    return logprobs
