"""Both ends of decoding: prompts side by side, the next token of each, responses cut at EOS.

B rows, P prompt tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

COMPACT_SHARE = 0.25  # finished rows leave the cache once they are this share of the batch
BLOCK = 256  # tokens whose probabilities are summed together when one is sampled


class Padded(NamedTuple):
    """Prompts padded on the left, so that their last tokens are in one column; (B, P) each."""

    ids: Tensor
    mask: Tensor  # bool
    positions: Tensor  # of a token in its prompt


def pad_left(prompts: list[list[int]], pad_id: int, device: Any) -> Padded:
    """B prompts of at most P tokens, as a decoder reads them."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return Padded(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))


def choose(logits: Tensor, uniforms: Tensor | None) -> Tensor:
    """(B, V), (B,) -> (B,): the token that `pick` gives; without uniforms the likeliest."""
    return logits.argmax(-1) if uniforms is None else pick(logits, uniforms)


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """(B, V), (B,) -> (B,): the token where the cumulative probability exceeds the uniform.

    Found in two steps, the block and then the token in it, so that float64 sums are of one block.
    """
    mass = (logits - logits.amax(-1, keepdim=True)).exp_()
    blocks = functional.pad(mass, (0, -mass.shape[-1] % BLOCK)).view(len(mass), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)  # (B, blocks)
    target = uniforms.double()[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=blocks.shape[1] - 1)  # (B, 1)
    end = ends.gather(-1, block)
    start = ends.gather(-1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0)
    own = blocks[torch.arange(len(mass), device=mass.device), block[:, 0]].double().cumsum(-1)
    within = (target - start) / (end - start) * own[:, -1:]  # the two sums differ in last digits
    step = torch.searchsorted(own, within, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + step).squeeze(-1).clamp(max=mass.shape[-1] - 1)


def cut_after(ids: list[int], eos_id: int) -> list[int]:
    """Everything up to and including the first EOS."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
