"""Log-probabilities of given tokens, without materialising a (B, T, V) tensor.

Different here: the products of a bfloat16 head are summed and kept in float32, on CPUs too, and a
head that trains gets its gradient tile by tile. N rows, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.rlhf.sizes import LOGITS_TILE


class TokenScores(NamedTuple):
    """Of N rows; only the log-probabilities have a gradient."""

    logprobs: Tensor  # (N,) fp32, of the targets
    entropy: Tensor  # (N,) fp32, nats
    top1: Tensor  # (N,) bool: the target is the argmax, the first where several tie


def head_logits(
    hidden: Tensor,
    weight: Tensor,
    temperature: float,
    softcap: float,
    bias: Tensor | None = None,
) -> Tensor:
    """(N, H), (V, H) -> (N, V) fp32: plus bias (V,), soft-capped, divided by the temperature.

    Rounded as the model's own logits are, to the dtype of `weight`.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 logits lack precision
        logits = (hidden.to(weight.dtype) @ weight.T).float()
    return _finish(logits, temperature, softcap, bias)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    softcap: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """(N, H), (V, H), (N,) -> (N,) fp32 log-probabilities of `targets`.

    `softcap` is Gemma-2's final logit soft-cap, 0 for none; `bias` (V,) is Phi's. Equal to
    gather(log_softmax(logits)), with gradients for `hidden`, `weight` and `bias`.
    """
    head = _Settings(temperature, softcap)
    logprobs: Tensor = _TiledLogprobs.apply(hidden, weight, bias, targets, head)[0]
    return logprobs


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    softcap: float = 0.0,
    bias: Tensor | None = None,
) -> TokenScores:
    """`token_logprobs`, with each distribution's entropy and whether the target is its mode."""
    head = _Settings(temperature, softcap, scores=True)
    return TokenScores(*_TiledLogprobs.apply(hidden, weight, bias, targets, head))


@dataclass(frozen=True)
class _Settings:
    temperature: float
    softcap: float  # 0: none
    scores: bool = False  # whether entropy and top1 are requested


class _TiledLogprobs(torch.autograd.Function):
    """log softmax(softcap(hidden @ weight.T + bias) / temperature)[targets], tile by tile.

    A log-probability is a scalar, so under a frozen head its gradient with respect to its own row
    of `hidden` is computed in the forward pass from the same tiles, and the backward pass only
    scales it: logits are never recomputed. The gradient of a head mixes rows, so for a head that
    trains the backward pass makes the tiles again. Sums over the vocabulary use online softmax,
    relative to the highest logit so far (Milakov and Gimelshein 2018, arXiv 1805.02867).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head, trains = head, any(ctx.needs_input_grad[1:3])
        early = ctx.needs_input_grad[0] and not trains
        rows = _tile(hidden)[0]
        with _float32_sums(weight):
            parts = [
                _forward(hidden[i : i + rows], weight, bias, targets[i : i + rows], head, early)
                for i in range(0, max(len(targets), 1), rows)
            ]
        logprobs, log_total, entropy, top1, gradient = (
            torch.cat(found) for found in zip(*parts, strict=True)
        )
        if trains:
            ctx.save_for_backward(hidden, weight, bias, targets, log_total)
        elif early:
            ctx.save_for_backward(gradient)
        ctx.trains = trains
        ctx.mark_non_differentiable(entropy, top1)
        return logprobs, entropy, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.trains:
            (gradient,) = ctx.saved_tensors
            return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None
        hidden, weight, bias, targets, log_total = ctx.saved_tensors
        with _float32_sums(weight):
            found = _head_gradients(hidden, weight, bias, targets, log_total, grads[0], ctx.head)
        return *found, None, None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: _Settings,
    early: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of N rows: logprobs, log sum exp, entropy, top1 and d logp / d hidden; empty unless needed.

    d logp / d hidden = (weight[target] - sum_v p_v weight[v]) / temperature; with a soft-cap, each
    token's weight is multiplied by the cap's derivative at its logit.
    """
    states = hidden.to(weight.dtype)
    chosen = torch.zeros(len(targets), device=hidden.device)
    highest, total = torch.full_like(chosen, -torch.inf), torch.zeros_like(chosen)
    before, moment = highest.clone(), total.clone()  # highest before the target; sum of p log p
    mean = torch.zeros(hidden.shape if early else (0,), device=hidden.device)
    for at, part, logits in _tiles(states, weight, bias, head):
        column = targets - at
        in_tile = (column >= 0) & (column < len(part))
        index = column.clamp(0, len(part) - 1)[:, None]
        chosen = torch.where(in_tile, logits.gather(-1, index).squeeze(-1), chosen)
        tops = logits.amax(-1)
        if head.scores:
            before = _highest_before(before, logits, tops, column)
        top = torch.maximum(highest, tops)
        rescale = (highest - top).exp_()
        cap_grad = _cap_grad(logits, head) if early and head.softcap else None
        shares = logits.sub_(top[:, None])
        if head.scores:
            shares = logits.exp()
            moved = torch.where(total > 0, moment + total * (highest - top), 0)
            moment = moved * rescale + logits.mul_(shares).sum(-1)
        else:
            shares.exp_()
        total = total * rescale + shares.sum(-1)
        if early:
            if cap_grad is not None:
                shares *= cap_grad
            mean.mul_(rescale[:, None])
            _add_product(mean, shares, part)
        highest = top
    log_total = highest + total.log()
    entropy = total.log() - moment / total if head.scores else total[:0]
    top1 = (chosen >= highest) & (chosen > before) if head.scores else in_tile[:0]
    if early:
        own = weight[targets].float()
        if head.softcap:
            own *= _cap_grad(chosen, head)[:, None]
        mean = (own - mean / total[:, None]) / head.temperature
    return chosen - log_total, log_total, entropy, top1, mean.to(hidden.dtype)


def _highest_before(before: Tensor, logits: Tensor, tops: Tensor, column: Tensor) -> Tensor:
    """(N,) the highest logit at an index below the target's, with this tile (N, C) seen too."""
    width = logits.shape[-1]
    found = torch.where(column >= width, torch.maximum(before, tops), before)
    rows = ((column > 0) & (column < width)).nonzero().squeeze(-1)
    if len(rows):
        later = torch.arange(width, device=logits.device) >= column[rows, None]
        own = logits[rows].masked_fill_(later, -torch.inf).amax(-1)
        found[rows] = torch.maximum(before[rows], own)
    return found


def _head_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_total: Tensor,
    grads: Tensor,
    head: _Settings,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden (N, H), weight (V, H) and bias (V,), from those of the logprobs (N,).

    d logp_n / d z_v = [v = target_n] - p_v for the logits z after soft-cap and temperature.
    """
    of_hidden = torch.zeros(hidden.shape, device=hidden.device)
    of_weight = torch.zeros(weight.shape, device=weight.device)
    of_bias = None if bias is None else torch.zeros(len(weight), device=weight.device)
    rows = _tile(hidden)[0]
    for i in range(0, len(hidden), rows):
        own = slice(i, i + rows)
        states, scale = hidden[own].to(weight.dtype), grads[own, None] / head.temperature
        for at, part, logits in _tiles(states, weight, bias, head):
            cap_grad = _cap_grad(logits, head) if head.softcap else None
            d_logits = logits.sub_(log_total[own, None]).exp_().mul_(-scale)
            column = targets[own] - at
            found = ((column >= 0) & (column < len(part))).nonzero().squeeze(-1)
            d_logits[found, column[found]] += scale[found, 0]
            if cap_grad is not None:
                d_logits *= cap_grad
            columns = slice(at, at + len(part))
            _add_product(of_hidden[own], d_logits, part)
            _add_product(of_weight[columns], d_logits.T, states)
            if of_bias is not None:
                of_bias[columns] += d_logits.sum(0)
    of_bias = None if of_bias is None or bias is None else of_bias.to(bias.dtype)
    return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), of_bias


def _tiles(
    states: Tensor, weight: Tensor, bias: Tensor | None, head: _Settings
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First column, rows of `weight` (C, H), logits (N, C) fp32 in one buffer; for all of V."""
    columns = _tile(states)[1]
    buffer = torch.empty(len(states), min(columns, len(weight)), device=states.device)
    wide = states.float() if _widens(states) else states
    for at in range(0, len(weight), columns):
        part = weight[at : at + columns]
        logits = buffer if len(part) == columns else buffer[:, : len(part)]
        if states.dtype == torch.float32 or _widens(states):
            torch.mm(wide, part.float().T, out=logits)
        else:
            torch.mm(states, part.T, out_dtype=torch.float32, out=logits)
        own_bias = None if bias is None else bias[at : at + columns]
        yield at, part, _finish(logits, head.temperature, head.softcap, own_bias)


def _add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into (N, H) fp32 += a (N, C) fp32 @ b (C, H), `a` rounded to the dtype of `b`."""
    if b.dtype == torch.float32 or _widens(b):
        into.addmm_(a, b.float())
    else:
        into += torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)


def _widens(tensor: Tensor) -> bool:
    """Whether bfloat16 is widened for products: CPUs have none that returns float32.

    oneDNN rounds both sides back under `_float32_sums`, where the processor has such products.
    """
    return tensor.dtype != torch.float32 and tensor.device.type == "cpu"


@contextmanager
def _float32_sums(weight: Tensor) -> Iterator[None]:
    """Products of a bfloat16 head on a CPU: factors in bfloat16, sums in float32. No autocast."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if weight.dtype == torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        with torch.autocast(weight.device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = before


def _finish(logits: Tensor, temperature: float, softcap: float, bias: Tensor | None) -> Tensor:
    """Bias, soft-cap and temperature, in place."""
    if bias is not None:
        logits.add_(bias)
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits if temperature == 1 else logits.div_(temperature)


def _tile(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return LOGITS_TILE.get(tensor.device.type, LOGITS_TILE["cuda"])


def _cap_grad(logits: Tensor, head: _Settings) -> Tensor:
    """Derivative of the soft-cap at its outputs `logits` (after division by the temperature)."""
    return 1 - (logits * (head.temperature / head.softcap)) ** 2
