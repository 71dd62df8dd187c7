"""Ranking losses against pairs written out, permutations written out, and each other."""

from itertools import combinations
from math import exp, log

import pytest
import torch
from torch import Tensor

from stages.rlhf.ranking import LOSSES, better, bradley_terry, plackett_luce

ALL = torch.ones(1, 5, dtype=torch.bool)


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_loss(better_score: float, worse_score: float) -> float:
    return log(1 + exp(-(better_score - worse_score)))


def test_all_pairs_of_five_are_the_mean_of_ten_pair_losses() -> None:
    row, ranks = scores(1, 5), torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0]])
    pairs = [
        pair_loss(row[0, i].item(), row[0, j].item())
        if ranks[0, i] < ranks[0, j]
        else pair_loss(row[0, j].item(), row[0, i].item())
        for i, j in combinations(range(5), 2)
    ]
    assert len(pairs) == 10
    assert bradley_terry(row, ranks, ALL).item() == pytest.approx(sum(pairs) / 10, abs=1e-12)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    row, ranks = scores(6, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]] * 3)
    present = torch.ones(6, 2, dtype=torch.bool)
    torch.testing.assert_close(
        plackett_luce(row, ranks, present), bradley_terry(row, ranks, present), rtol=0, atol=1e-12
    )


def test_plackett_luce_is_the_likelihood_of_the_permutation() -> None:
    row, ranks = scores(1, 4, seed=1), torch.tensor([[2.0, 4.0, 1.0, 3.0]])
    left = [2, 0, 3, 1]  # answers from best to worst
    likelihood = 1.0
    while len(left) > 1:
        weights = [exp(row[0, i].item()) for i in left]
        likelihood *= weights[0] / sum(weights)
        left = left[1:]
    found = plackett_luce(row, ranks, ALL[:, :4]).item()
    assert found == pytest.approx(-log(likelihood) / 3, abs=1e-12)


def test_plackett_luce_sums_to_one_over_all_orders() -> None:
    row = scores(1, 3, seed=2)
    orders = [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]]
    orders.append([3.0, 2.0, 1.0])
    losses = plackett_luce(row.expand(6, 3), torch.tensor(orders), ALL[:, :3].expand(6, 3))
    assert torch.exp(-losses * 2).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_ties_are_masked() -> None:
    row = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    ranks = torch.tensor([[1.0, 2.0, 1.0]])  # the first and the third are equally good
    pairs = [pair_loss(1, 0), pair_loss(3, 0)]
    assert better(ranks, ALL[:, :3])[0].int().tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert bradley_terry(row, ranks, ALL[:, :3]).item() == pytest.approx(sum(pairs) / 2)
    # neither tied answer competes with the other
    assert plackett_luce(row, ranks, ALL[:, :3]).item() == pytest.approx(sum(pairs) / 2)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_group_of_ties_teaches_nothing(name: str) -> None:
    row = scores(1, 4).requires_grad_()
    loss = LOSSES[name](row, torch.ones(1, 4), ALL[:, :4])
    loss.sum().backward()
    assert loss.item() == 0
    assert row.grad is not None
    assert row.grad.eq(0).all()


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("junk", [-50.0, 0.0, 1e4])
def test_answers_that_are_not_there_change_nothing(name: str, junk: float) -> None:
    row, ranks = scores(2, 3), torch.tensor([[2.0, 1.0, 3.0], [1.0, 3.0, 2.0]])
    expected = LOSSES[name](row, ranks, torch.ones(2, 3, dtype=torch.bool))
    wide = torch.cat([row, torch.full((2, 2), junk, dtype=torch.float64)], 1).requires_grad_()
    wide_ranks = torch.cat([ranks, torch.zeros(2, 2)], 1)
    present = torch.tensor([[True] * 3 + [False] * 2] * 2)
    found = LOSSES[name](wide, wide_ranks, present)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    assert wide.grad is not None
    assert wide.grad[:, 3:].eq(0).all()
    assert wide.grad.isfinite().all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_only_differences_of_scores_count_and_order_pays(name: str) -> None:
    ranks = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    right, wrong = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    present = ALL[:, :4]
    assert LOSSES[name](right, ranks, present) < LOSSES[name](wrong, ranks, present)
    torch.testing.assert_close(
        LOSSES[name](right + 7, ranks, present), LOSSES[name](right, ranks, present)
    )
