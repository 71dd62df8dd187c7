"""The reward's parts, each counted once."""

import torch

from stages.rlhf.reward import final_reward


def test_final_reward_by_hand() -> None:
    found = final_reward(
        torch.tensor([0.5, 1.0, 9.0, -9.0, -9.5]),
        torch.tensor([0.0, 2.0, 1.0, 0.5, 1e9]),
        torch.tensor([0.0, 0.5, 1.0, -1.0, 0.0]),
        torch.tensor([True, False, True, True, False]),
        score_clip=5.0,
        uncertainty_coef=0.25,
        missing_eos_penalty=1.5,
    )
    assert found.score.tolist() == [0.5, 0.5, 5.0, -5.0, -5.0]
    assert found.uncertainty.tolist() == [0.0, 0.5, 0.25, 0.125, 5.0]
    assert found.penalty.tolist() == [0.0, 1.5, 0.0, 0.0, 1.5]
    assert found.total.tolist() == [0.5, -1.5, 4.75, -5.125, -11.5]
    assert found.ended.tolist() == [True, False, True, True, False]
