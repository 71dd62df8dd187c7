"""The reward's parts, each counted once."""

import pytest
import torch

from stages.rlhf.ppo.reward import Penalties, Violations, final_reward, missing_eos_cost


def flags(*places: int) -> torch.Tensor:
    """(5,) bool, True at these places."""
    return torch.tensor([i in places for i in range(5)])


def test_final_reward_by_hand() -> None:
    found = final_reward(
        torch.tensor([0.5, 1.0, 9.0, -9.0, -9.5]),
        torch.tensor([0.0, 2.0, 1.0, 0.5, 1e9]),
        torch.tensor([0.0, 0.5, 1.0, -1.0, 0.0]),
        torch.tensor([2.0, 0.0, -2.0, 1.0, 0.0]),
        Violations(missing_eos=flags(1, 4), repetition=flags(2, 4), copy=flags(3)),
        score_clip=5.0,
        uncertainty_coef=0.25,
        penalties=Penalties(missing_eos=1.5, repetition=0.5, copy=0.25),
    )
    assert found.score.tolist() == [0.5, 0.5, 5.0, -5.0, -5.0]
    assert found.uncertainty.tolist() == [0.0, 0.5, 0.25, 0.125, 5.0]
    assert found.penalty.tolist() == [0.0, 1.5, 0.5, 0.25, 2.0]
    assert found.evidence.tolist() == [2.0, 0.0, -2.0, 1.0, 0.0]
    assert found.total.tolist() == [2.5, -1.5, 2.25, -4.375, -12.0]
    assert found.violations.copy.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("penalty", "cut_share", "cost"),
    [
        (3.0, 0.0, 3.0),
        (3.0, 1.0, 3.0),  # the same for all: it teaches nothing
        (3.0, 0.003, 3.0),
        (3.0, 0.2, 0.625),
        (3.0, 0.5, 0.5),
        (0.3, 0.2, 0.3),
        (0.0, 0.2, 0.0),
    ],
)
def test_a_missing_eos_costs_less_where_sft_itself_is_often_cut_off(
    penalty: float, cut_share: float, cost: float
) -> None:
    assert missing_eos_cost(penalty, cut_share) == pytest.approx(cost)
    answers = torch.zeros(1000)
    answers[: int(1000 * cut_share)] = missing_eos_cost(penalty, cut_share)
    assert 0 < cut_share < 0.01 or answers.std(correction=0) <= 0.25 + 1e-6
