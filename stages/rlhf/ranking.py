"""Losses on ranked answers: scores in, one number out.

G groups (questions), K answers each. Ranks: 1 = best, equal = tie; `present` is bool, False where a
group has fewer answers than K.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def better(ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 2 -> (G, K, K) bool: answer i is ranked above answer j; ties are neither."""
    both = present[:, :, None] & present[:, None, :]
    return (ranks[:, :, None] < ranks[:, None, :]) & both


def bradley_terry(scores: Tensor, ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 3 -> (G,): mean of -log sigmoid(s_i - s_j) over a question's pairs i above j.

    Ouyang et al. 2022, eq. 1: all pairs of a question in one element, divided by their number.
    """
    pairs = better(ranks, present)
    losses = softplus(-(scores[:, :, None] - scores[:, None, :]))
    return torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def plackett_luce(scores: Tensor, ranks: Tensor, present: Tensor) -> Tensor:
    """(G, K) x 3 -> (G,): mean over answers of -log P(chosen before all answers ranked below it).

    Plackett 1975; tied answers do not compete. With K = 2 this is Bradley-Terry.
    """
    below = better(ranks, present)
    rivals = below | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    spread = torch.where(rivals, scores[:, None, :], -torch.inf)
    terms = torch.logsumexp(spread, -1) - scores
    counts = below.any(-1)
    return torch.where(counts, terms, 0).sum(-1) / counts.sum(-1).clamp(min=1)


LOSSES = {"bradley_terry": bradley_terry, "plackett_luce": plackett_luce}
