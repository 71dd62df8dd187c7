"""From the reward model's score to the reward that PPO sees: B answers."""

from typing import NamedTuple

from torch import Tensor


class Reward(NamedTuple):
    """Every part of it, (B,) each, in standard deviations over SFT's own answers."""

    score: Tensor  # mean over the reward model's members, less its length curve; clipped
    uncertainty: Tensor  # taken off where the members disagree, clipped
    penalty: Tensor  # taken off for an answer that did not end
    total: Tensor  # score - uncertainty - penalty: what stands at the answer's last token
    ended: Tensor  # bool: the answer ended by itself


def final_reward(
    mean: Tensor,
    variance: Tensor,
    length_offsets: Tensor,
    ended: Tensor,
    score_clip: float,
    uncertainty_coef: float,
    missing_eos_penalty: float,
) -> Reward:
    """(B,) x 3, (B,) bool -> the reward's parts; the KL is taken off token by token elsewhere.

    mean - uncertainty_coef * variance over the members: Coste et al. 2024, arXiv 2310.02743.
    """
    score = (mean - length_offsets).clamp(-score_clip, score_clip)
    uncertainty = (uncertainty_coef * variance).clamp(max=score_clip)
    penalty = missing_eos_penalty * (~ended).float()
    return Reward(score, uncertainty, penalty, score - uncertainty - penalty, ended)
