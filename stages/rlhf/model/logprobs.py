"""Log-probabilities of given tokens, without ever holding a (B, T, V) tensor.

N rows, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

# Rows and tokens of the logits in memory at once: 1 MiB, which stays in a core's cache; 64 MiB.
TILES = {"cpu": (256, 1024), "cuda": (2048, 8192)}


def head_logits(hidden: Tensor, weight: Tensor, temperature: float, softcap: float) -> Tensor:
    """(N, H), (V, H) -> (N, V) fp32: soft-capped, then divided by the temperature."""
    with torch.autocast(hidden.device.type, enabled=False):  # log-probabilities need the digits
        logits = (hidden.to(weight.dtype) @ weight.T).float()
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits.div_(temperature)


class _TiledLogprobs(torch.autograd.Function):
    """log softmax(softcap(hidden @ weight.T) / temperature)[targets], tile by tile.

    A log-probability is one number, so the slope of each by its own row of `hidden` is taken beside
    it, from the same tiles, and the backward pass only scales it: no logits are made twice. Over
    the vocabulary, sums are kept relative to the highest logit so far (Milakov and Gimelshein 2018,
    arXiv 1805.02867).
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
        rows = TILES.get(hidden.device.type, TILES["cuda"])[0]
        found = [
            _logprobs_and_slopes(
                hidden[i : i + rows],
                weight,
                targets[i : i + rows],
                temperature,
                softcap,
                ctx.needs_input_grad[0],
            )
            for i in range(0, max(len(targets), 1), rows)
        ]
        logprobs, slopes = zip(*found, strict=True)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][:, None]).to(slopes.dtype), None, None, None, None


def _logprobs_and_slopes(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float,
    wants_slopes: bool,
) -> tuple[Tensor, Tensor]:
    """(N, H), (V, H), (N,) -> (N,) log-probabilities and (N, H) slopes; without, those are empty.

    d logprob / d hidden = (weight[target] - sum_v p_v weight[v]) / temperature, and under a
    soft-cap each token's weight is multiplied by the cap's own slope at its logit.
    """
    columns = TILES.get(hidden.device.type, TILES["cuda"])[1]
    chosen = torch.zeros(len(targets), device=hidden.device)
    highest, total = torch.full_like(chosen, -torch.inf), torch.zeros_like(chosen)
    mean = torch.zeros(hidden.shape if wants_slopes else (0,), device=hidden.device)
    for j in range(0, len(weight), columns):
        part = weight[j : j + columns]
        logits = head_logits(hidden, part, temperature, softcap)
        place = targets - j
        here = (place >= 0) & (place < len(part))
        at = place.clamp(0, len(part) - 1)[:, None]
        chosen = torch.where(here, logits.gather(-1, at).squeeze(-1), chosen)
        top = torch.maximum(highest, logits.amax(-1))
        fade = (highest - top).exp_()
        steep = _cap_slope(logits, temperature, softcap) if wants_slopes and softcap else None
        shares = logits.sub_(top[:, None]).exp_()
        total = total * fade + shares.sum(-1)
        if wants_slopes:
            if steep is not None:
                shares *= steep
            mean = mean * fade[:, None] + (shares.to(part.dtype) @ part).float()
        highest = top
    logprobs = chosen - highest - total.log()
    if not wants_slopes:
        return logprobs, mean
    own = weight[targets].float()
    if softcap:
        own *= _cap_slope(chosen, temperature, softcap)[:, None]
    return logprobs, ((own - mean / total[:, None]) / temperature).to(hidden.dtype)


def _cap_slope(logits: Tensor, temperature: float, softcap: float) -> Tensor:
    """How steep the soft-cap is where it gives these logits."""
    return 1 - (logits * (temperature / softcap)) ** 2


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
