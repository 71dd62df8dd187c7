"""Ranking losses: scores in, one loss per question out.

G groups (questions), K answers each, N answers in a batch. Ranks: 1 = best, equal = tie; `present`
is bool, False on padding of groups with fewer than K answers. `pairs` (G, K, K) is bool: answer i
is known to be better than answer j. Unknown orders (ties, padding, unranked answers) are False in
both directions and contribute no loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus


def better(ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 2 -> (G, K, K) bool: answer i is ranked above answer j; ties are neither."""
    both = present[:, :, None] & present[:, None, :]
    return (ranks[:, :, None] < ranks[:, None, :]) & both


def rank_gap(ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 2 -> (G, K, K): dense rank of answer j minus that of answer i."""
    below = better(ranks, present)
    same = (ranks[:, :, None] == ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    first = ~same.tril(-1).any(-1)  # one answer represents all that share its rank
    dense = (below & first[:, :, None]).sum(1).float()
    return dense[:, None, :] - dense[:, :, None]


def bradley_terry(
    scores: Tensor,
    pairs: Tensor,
    weights: Tensor | None = None,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(G, K), (G, K, K) x 3 -> (G,): mean of -log sigmoid(s_i - s_j - margin) over the pairs.

    Ouyang et al. 2022, eq. 1: all pairs of a question in one element, divided by their number. A
    pair's loss is multiplied by its weight. `label_smoothing` is the probability of a wrong label,
    the weight of the opposite pair's loss.
    """
    gaps = scores[:, :, None] - scores[:, None, :]
    margin = torch.zeros_like(gaps) if margins is None else margins
    losses = (1 - label_smoothing) * softplus(margin - gaps)
    if label_smoothing > 0:
        losses = losses + label_smoothing * softplus(margin + gaps)
    if weights is not None:
        losses = losses * weights
    return torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def plackett_luce(scores: Tensor, pairs: Tensor, weights: Tensor | None = None) -> Tensor:
    """(G, K), (G, K, K) x 2 -> (G,): mean over answers of -log P(chosen before all known worse).

    Plackett 1975; tied answers do not compete. An answer's term is multiplied by the mean weight of
    its pairs. With K = 2 this is Bradley-Terry, weights included.
    """
    competing = pairs | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    logits = torch.where(competing, scores[:, None, :], -torch.inf)
    terms = torch.logsumexp(logits, -1) - scores
    if weights is not None:
        terms = terms * torch.where(pairs, weights, 0).sum(-1) / pairs.sum(-1).clamp(min=1)
    counts = pairs.any(-1)
    return torch.where(counts, terms, 0).sum(-1) / counts.sum(-1).clamp(min=1)


def length_weights(lengths: Tensor, longer: float, shorter: float) -> Tensor:
    """(G, K) -> (G, K, K): `longer` if answer i is longer than j, `shorter` if shorter, else 1."""
    gaps = lengths[:, :, None] - lengths[:, None, :]
    return torch.where(gaps > 0, longer, torch.where(gaps < 0, shorter, 1.0))


def balance(longer: float, shorter: float) -> tuple[float, float]:
    """Weights for pairs whose better answer is the longer one, and the shorter one.

    `longer` and `shorter` are the total weights of such pairs before; after, both are equal and
    their sum is unchanged. (1, 1) if one of them is 0.
    """
    if longer == 0 or shorter == 0:
        return 1.0, 1.0
    half = (longer + shorter) / 2
    return half / longer, half / shorter


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """(N,) x 2 -> correlation; 0 without gradient if either is constant."""
    x, y = x - x.mean(), y - y.mean()
    norms = x.norm() * y.norm()
    varies = norms > 1e-6
    return torch.where(varies, (x * y).sum() / torch.where(varies, norms, 1.0), 0.0)


def length_disentangling(quality: Tensor, length: Tensor, tokens: Tensor) -> Tensor:
    """(N,) x 3 -> |corr(quality, tokens)| - corr(length, tokens), in [-1, 2].

    ODIN (Chen et al. 2024, arXiv 2402.07319): minimal if the quality score is uncorrelated with
    length and the length score fully correlated.
    """
    return pearson(quality, tokens).abs() - pearson(length, tokens)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """(1, H) x 2 -> |cosine| of two heads' weights, to keep them orthogonal (ODIN)."""
    return cosine_similarity(one, other, dim=-1).abs().sum()
