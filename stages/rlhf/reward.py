"""From the reward model's score to the reward that PPO sees: B answers."""

from typing import NamedTuple

from torch import Tensor


class Reward(NamedTuple):
    """Every part of it, (B,) each, in standard deviations over SFT's own answers."""

    score: Tensor  # normalised score of the reward model, clipped
    penalty: Tensor  # taken off for an answer that did not end
    total: Tensor  # score - penalty: what stands at the answer's last token
    ended: Tensor  # bool: the answer ended by itself


def final_reward(
    normalised: Tensor, ended: Tensor, score_clip: float, missing_eos_penalty: float
) -> Reward:
    """(B,), (B,) bool -> the reward's parts; the KL is taken off token by token elsewhere."""
    score = normalised.clamp(-score_clip, score_clip)
    penalty = missing_eos_penalty * (~ended).float()
    return Reward(score, penalty, score - penalty, ended)
