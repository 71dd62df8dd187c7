"""Ranking losses against pairs written out, permutations written out, and each other."""

from collections.abc import Callable
from itertools import combinations
from math import exp, log

import pytest
import torch
from torch import Tensor

from stages.rlhf.reward.losses import (
    balance,
    better,
    bradley_terry,
    length_disentangling,
    length_weights,
    overlap,
    pearson,
    plackett_luce,
    rank_gap,
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bradley_terry": bradley_terry,
    "plackett_luce": plackett_luce,
}


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_of(*ranks: list[float]) -> Tensor:
    """(G, K, K) of groups with all K answers."""
    table = torch.tensor(ranks)
    return better(table, torch.ones(table.shape, dtype=torch.bool))


def pair_loss(better_score: float, worse_score: float, wanted: float = 0.0) -> float:
    return log(1 + exp(wanted - (better_score - worse_score)))


def test_all_pairs_of_five_are_the_mean_of_ten_pair_losses() -> None:
    row, ranks = scores(1, 5), torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0]])
    pairs = [
        pair_loss(row[0, i].item(), row[0, j].item())
        if ranks[0, i] < ranks[0, j]
        else pair_loss(row[0, j].item(), row[0, i].item())
        for i, j in combinations(range(5), 2)
    ]
    assert len(pairs) == 10
    found = bradley_terry(row, pairs_of(*ranks.tolist()))
    assert found.item() == pytest.approx(sum(pairs) / 10, abs=1e-12)


def test_margins_grow_with_the_places_between() -> None:
    row, ranks = scores(1, 4), [[4.0, 1.0, 2.0, 2.0]]  # places 3, 1, 2, 2
    gaps = rank_gap(torch.tensor(ranks), torch.ones(1, 4, dtype=torch.bool))
    assert gaps[0].tolist() == [[0, -2, -1, -1], [2, 0, 1, 1], [1, -1, 0, 0], [1, -1, 0, 0]]
    s = row[0].tolist()
    expected = pair_loss(s[1], s[0], 0.6) + sum(
        pair_loss(s[i], s[j], 0.3) for i, j in ((1, 2), (1, 3), (2, 0), (3, 0))
    )
    found = bradley_terry(row, pairs_of(*ranks), margins=0.3 * gaps)
    assert found.item() == pytest.approx(expected / 5, abs=1e-6)


def test_places_of_answers_that_are_not_there_count_nothing() -> None:
    ranks, present = torch.tensor([[1.0, 0.5, 2.0]]), torch.tensor([[True, False, True]])
    assert rank_gap(ranks, present)[0, 0, 2] == 1


def test_smoothed_labels_are_the_other_way_round_by_that_share() -> None:
    row, pairs = scores(1, 3), pairs_of([1.0, 2.0, 3.0])
    plain, turned = bradley_terry(row, pairs), bradley_terry(row, pairs.transpose(1, 2))
    found = bradley_terry(row, pairs, label_smoothing=0.2)
    torch.testing.assert_close(found, 0.8 * plain + 0.2 * turned, rtol=0, atol=1e-12)
    # the best lead is then finite: log odds of the label being right
    lead = torch.tensor([[log(4.0), 0.0]], requires_grad=True)
    bradley_terry(lead, pairs_of([1.0, 2.0]), label_smoothing=0.2).backward()
    assert lead.grad is not None
    assert lead.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_weights_multiply_the_loss_of_a_pair(name: str) -> None:
    row, pairs = scores(2, 2), pairs_of([1.0, 2.0], [2.0, 1.0])
    weights = length_weights(torch.tensor([[5.0, 3.0], [5.0, 3.0]]), 0.5, 2.0)
    plain, found = LOSSES[name](row, pairs), LOSSES[name](row, pairs, weights)
    torch.testing.assert_close(found, plain * torch.tensor([0.5, 2.0]), rtol=0, atol=1e-12)


def test_weights_of_several_pairs() -> None:
    row, pairs = scores(1, 3, seed=3), pairs_of([1.0, 2.0, 3.0])
    weights = length_weights(torch.tensor([[4.0, 9.0, 4.0]]), 3.0, 7.0)
    s = row[0].tolist()
    weighted = 7 * pair_loss(s[0], s[1]) + 1 * pair_loss(s[0], s[2]) + 3 * pair_loss(s[1], s[2])
    assert bradley_terry(row, pairs, weights).item() == pytest.approx(weighted / 3)
    stages = [log(sum(map(exp, s))) - s[0], log(exp(s[1]) + exp(s[2])) - s[1]]
    expected = ((7 + 1) / 2 * stages[0] + 3 * stages[1]) / 2
    assert plackett_luce(row, pairs, weights).item() == pytest.approx(expected)


def test_balanced_weights_make_both_kinds_of_pairs_weigh_the_same() -> None:
    longer, shorter = balance(30.0, 10.0)
    assert 30 * longer == pytest.approx(10 * shorter)
    assert 30 * longer + 10 * shorter == pytest.approx(40)
    assert balance(0.0, 10.0) == balance(10.0, 0.0) == (1.0, 1.0)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    row, pairs = scores(6, 2), pairs_of(*[[1.0, 2.0], [2.0, 1.0]] * 3)
    torch.testing.assert_close(
        plackett_luce(row, pairs), bradley_terry(row, pairs), rtol=0, atol=1e-12
    )


def test_plackett_luce_is_the_likelihood_of_the_permutation() -> None:
    row = scores(1, 4, seed=1)
    left = [2, 0, 3, 1]  # answers from best to worst
    likelihood = 1.0
    while len(left) > 1:
        weights = [exp(row[0, i].item()) for i in left]
        likelihood *= weights[0] / sum(weights)
        left = left[1:]
    found = plackett_luce(row, pairs_of([2.0, 4.0, 1.0, 3.0])).item()
    assert found == pytest.approx(-log(likelihood) / 3, abs=1e-12)


def test_plackett_luce_sums_to_one_over_all_orders() -> None:
    row = scores(1, 3, seed=2)
    orders = [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]]
    orders.append([3.0, 2.0, 1.0])
    losses = plackett_luce(row.expand(6, 3), pairs_of(*orders))
    assert torch.exp(-losses * 2).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_ties_are_masked() -> None:
    row = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    pairs = pairs_of([1.0, 2.0, 1.0])  # the first and the third are equally good
    assert pairs[0].int().tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    expected = (pair_loss(1, 0) + pair_loss(3, 0)) / 2
    assert bradley_terry(row, pairs).item() == pytest.approx(expected)
    # neither tied answer competes with the other
    assert plackett_luce(row, pairs).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_of_ties_teaches_nothing(name: str) -> None:
    row = scores(1, 4).requires_grad_()
    loss = LOSSES[name](row, pairs_of([1.0] * 4), torch.full((1, 4, 4), 2.0))
    loss.sum().backward()
    assert loss.item() == 0
    assert row.grad is not None
    assert row.grad.eq(0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [-50.0, 0.0, 1e4])
def test_answers_that_are_not_there_change_nothing(name: str, junk: float) -> None:
    row, ranks = scores(2, 3), torch.tensor([[2.0, 1.0, 3.0], [1.0, 3.0, 2.0]])
    expected = LOSSES[name](row, better(ranks, torch.ones(2, 3, dtype=torch.bool)))
    wide = torch.cat([row, torch.full((2, 2), junk, dtype=torch.float64)], 1).requires_grad_()
    wide_ranks = torch.cat([ranks, torch.zeros(2, 2)], 1)
    present = torch.tensor([[True] * 3 + [False] * 2] * 2)
    weights = length_weights(torch.tensor([[1.0, 1.0, 1.0, 0.0, 9.0]] * 2), 0.5, 3.0)
    found = LOSSES[name](wide, better(wide_ranks, present), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    assert wide.grad is not None
    assert wide.grad[:, 3:].eq(0).all()
    assert wide.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_only_differences_of_scores_count_and_order_pays(name: str) -> None:
    pairs = pairs_of([1.0, 2.0, 3.0, 4.0])
    right, wrong = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert LOSSES[name](right, pairs) < LOSSES[name](wrong, pairs)
    torch.testing.assert_close(LOSSES[name](right + 7, pairs), LOSSES[name](right, pairs))


def test_pearson_is_the_correlation_and_a_constant_has_none() -> None:
    x, y = scores(20, seed=4), scores(20, seed=5)
    expected = torch.corrcoef(torch.stack([x, y]))[0, 1]
    torch.testing.assert_close(pearson(x, y), expected, rtol=0, atol=1e-12)
    flat = torch.ones(20, dtype=torch.float64, requires_grad=True)
    for other in (y, torch.ones(20, dtype=torch.float64)):
        found = pearson(flat, other)
        found.backward()
        assert found == 0
        assert flat.grad is not None
        assert flat.grad.eq(0).all()


def test_length_terms_are_least_where_length_knows_all_and_quality_nothing() -> None:
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    none = torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert length_disentangling(none, 2 * tokens, tokens) == pytest.approx(-1)
    assert length_disentangling(-tokens, -tokens, tokens) == pytest.approx(2)
    assert length_disentangling(tokens, none, tokens) == pytest.approx(1)


def test_heads_overlap_whatever_their_size_and_sign() -> None:
    one = torch.tensor([[1.0, 1.0]])
    assert overlap(one, -3 * one) == pytest.approx(1)
    assert overlap(one, torch.tensor([[2.0, -2.0]])) == pytest.approx(0, abs=1e-6)
