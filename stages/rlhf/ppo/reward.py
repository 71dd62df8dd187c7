"""From the reward model's score to the reward that PPO sees: B answers."""

from typing import NamedTuple

import torch
from torch import Tensor


class Violations(NamedTuple):
    """What costs an answer a constant penalty: (B,) bool each."""

    missing_eos: Tensor  # it did not end by itself
    repetition: Tensor  # a unit stands three times or more in a row
    copy: Tensor  # it gives the question back


class Reward(NamedTuple):
    """Every part of it, (B,) each, in standard deviations over SFT's own answers."""

    score: Tensor  # mean over the reward model's members, less its length curve; clipped
    uncertainty: Tensor  # taken off where the members disagree, clipped
    penalty: Tensor  # taken off for an answer that did not end, loops, or gives the question back
    total: Tensor  # score - uncertainty - penalty: what stands at the answer's last token
    violations: Violations


class Penalties(NamedTuple):
    """What each fault costs, in standard deviations of the reward."""

    missing_eos: float
    repetition: float
    copy: float


def final_reward(
    mean: Tensor,
    variance: Tensor,
    length_offsets: Tensor,
    violations: Violations,
    score_clip: float,
    uncertainty_coef: float,
    penalties: Penalties,
) -> Reward:
    """(B,) x 3, violations -> the reward's parts; the KL is taken off token by token elsewhere.

    mean - uncertainty_coef * variance over the members: Coste et al. 2024, arXiv 2310.02743.
    """
    score = (mean - length_offsets).clamp(-score_clip, score_clip)
    uncertainty = (uncertainty_coef * variance).clamp(max=score_clip)
    penalty = torch.zeros_like(mean)
    for fault, cost in zip(violations, penalties, strict=True):
        penalty = penalty + cost * fault
    return Reward(score, uncertainty, penalty, score - uncertainty - penalty, violations)
