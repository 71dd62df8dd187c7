"""From the reward model's score to the reward that PPO maximises: B responses."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CUT_SPREAD = 0.25  # sd of the reward that missing EOS may cause among SFT's own answers


class Violations(NamedTuple):
    """What costs a response a constant penalty: (B,) bool each."""

    missing_eos: Tensor  # it was cut off at the length limit
    repetition: Tensor  # a unit is repeated again and again in a row
    copy: Tensor  # it gives the prompt's question back


class Reward(NamedTuple):
    """Every term of it, (B,) each, in standard deviations over SFT's own responses."""

    score: Tensor  # mean over the reward model's members minus the length correction; clipped
    evidence: Tensor  # added for sentences that the corpus has, subtracted for contradicted ones
    uncertainty: Tensor  # subtracted where the members disagree; clipped
    penalty: Tensor  # subtracted for each violation
    total: Tensor  # score + evidence - uncertainty - penalty: at the response's last token
    violations: Violations


class Penalties(NamedTuple):
    """What each violation costs, in standard deviations of the reward."""

    missing_eos: float
    repetition: float
    copy: float


def missing_eos_cost(penalty: float, cut_share: float) -> float:
    """The penalty for a missing EOS: `penalty`, or less if many of SFT's own answers lack it.

    A penalty p for a share q of answers gives the reward an sd of p sqrt(q (1 - q)). With 3 sd and
    one answer in six that is more than the score's own sd, and PPO learns to be brief instead of
    right. p is therefore lowered until the sd is CUT_SPREAD.
    """
    spread = math.sqrt(cut_share * (1 - cut_share))
    return min(penalty, CUT_SPREAD / spread) if spread > 0 else penalty


def final_reward(
    mean: Tensor,
    variance: Tensor,
    length_offsets: Tensor,
    evidence: Tensor,
    violations: Violations,
    score_clip: float,
    uncertainty_coef: float,
    penalties: Penalties,
) -> Reward:
    """(B,) x 4, violations -> the reward's terms. The KL penalty is in `core.token_rewards`.

    mean - uncertainty_coef * variance over the members: Coste et al. 2024, arXiv 2310.02743.
    """
    score = (mean - length_offsets).clamp(-score_clip, score_clip)
    uncertainty = (uncertainty_coef * variance).clamp(max=score_clip)
    penalty = torch.zeros_like(mean)
    for violation, cost in zip(violations, penalties, strict=True):
        penalty = penalty + cost * violation
    total = score + evidence - uncertainty - penalty
    return Reward(score, evidence, uncertainty, penalty, total, violations)
