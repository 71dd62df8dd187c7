"""Losses on ranked answers: scores in, one number per question out.

G groups (questions), K answers each, N answers of a batch. Ranks: 1 = best, equal = tie; `present`
is bool, False where a group has fewer answers than K. `pairs` (G, K, K) is bool: answer i is known
to be better than answer j. What is not known (a tie, an answer that is not there, an order nobody
gave) is False both ways, and teaches nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus


def better(ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 2 -> (G, K, K) bool: answer i is ranked above answer j; ties are neither."""
    both = present[:, :, None] & present[:, None, :]
    return (ranks[:, :, None] < ranks[:, None, :]) & both


def rank_gap(ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 2 -> (G, K, K): places of answer j below answer i; tied answers share a place."""
    below = better(ranks, present)
    same = (ranks[:, :, None] == ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    first = ~same.tril(-1).any(-1)  # one answer stands for all that share its rank
    places = (below & first[:, :, None]).sum(1).float()
    return places[:, None, :] - places[:, :, None]


def bradley_terry(
    scores: Tensor,
    pairs: Tensor,
    weights: Tensor | None = None,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(G, K), (G, K, K) x 3 -> (G,): mean of -log sigmoid(s_i - s_j - margin) over the pairs.

    Ouyang et al. 2022, eq. 1: all pairs of a question in one element, divided by their number. A
    pair's loss is multiplied by its weight. `label_smoothing` is the chance that the label is
    wrong: that share of a pair's loss is the loss of the opposite pair.
    """
    gaps = scores[:, :, None] - scores[:, None, :]
    wanted = torch.zeros_like(gaps) if margins is None else margins
    losses = (1 - label_smoothing) * softplus(wanted - gaps)
    if label_smoothing > 0:
        losses = losses + label_smoothing * softplus(wanted + gaps)
    if weights is not None:
        losses = losses * weights
    return torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def plackett_luce(scores: Tensor, pairs: Tensor, weights: Tensor | None = None) -> Tensor:
    """(G, K), (G, K, K) x 2 -> (G,): mean over answers of -log P(chosen before all known worse).

    Plackett 1975; tied answers do not compete. An answer's term is multiplied by the mean weight of
    its pairs. With K = 2 this is Bradley-Terry, weights included.
    """
    rivals = pairs | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    spread = torch.where(rivals, scores[:, None, :], -torch.inf)
    terms = torch.logsumexp(spread, -1) - scores
    if weights is not None:
        terms = terms * torch.where(pairs, weights, 0).sum(-1) / pairs.sum(-1).clamp(min=1)
    counts = pairs.any(-1)
    return torch.where(counts, terms, 0).sum(-1) / counts.sum(-1).clamp(min=1)


def length_weights(lengths: Tensor, longer: float, shorter: float) -> Tensor:
    """(G, K) -> (G, K, K): `longer` where answer i is longer than j, `shorter` where shorter."""
    gaps = lengths[:, :, None] - lengths[:, None, :]
    return torch.where(gaps > 0, longer, torch.where(gaps < 0, shorter, 1.0))


def balance(longer: float, shorter: float) -> tuple[float, float]:
    """Weights for pairs whose better answer is the longer one, and the shorter one.

    `longer` and `shorter` are what such pairs weigh without them; with them both weigh the same,
    and together what they did. (1, 1) where one of them weighs nothing.
    """
    if longer == 0 or shorter == 0:
        return 1.0, 1.0
    half = (longer + shorter) / 2
    return half / longer, half / shorter


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """(N,) x 2 -> correlation; 0, with no gradient, where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = x.norm() * y.norm()
    varies = spread > 1e-6
    return torch.where(varies, (x * y).sum() / torch.where(varies, spread, 1.0), 0.0)


def length_disentangling(quality: Tensor, length: Tensor, tokens: Tensor) -> Tensor:
    """(N,) x 3 -> |corr(quality, tokens)| - corr(length, tokens), in [-1, 2].

    ODIN (Chen et al. 2024, arXiv 2402.07319): least where the quality score says nothing of
    the answer's length and the length score all of it.
    """
    return pearson(quality, tokens).abs() - pearson(length, tokens)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """(1, H) x 2 -> |cosine| of two heads' weights: they read different things (ODIN)."""
    return cosine_similarity(one, other, dim=-1).abs().sum()
