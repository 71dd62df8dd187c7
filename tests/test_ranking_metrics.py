"""Ranking metrics against scipy and naive loops, on random groups with ties."""

import random
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, rankdata

from stages.rlhf.ranking_metrics import LENGTH_MATCH, Group, accuracy, pairs_of, report

DEFECTS = ("none", "wrong", "loop", "cut+loop")


def random_groups(count: int, seed: int) -> list[Group]:
    """Groups of 1 to 5 answers; ranks and scores often tie."""
    rng = random.Random(seed)
    groups = []
    for _ in range(count):
        size = rng.randint(1, 5)
        groups.append(
            Group(
                scores=[rng.choice([-1.0, -0.25, 0.0, 0.5, 1.5]) for _ in range(size)],
                ranks=[float(rng.randint(1, 4)) for _ in range(size)],
                lengths=[rng.randint(5, 14) for _ in range(size)],
                defects=[rng.choice(DEFECTS) for _ in range(size)],
            )
        )
    return groups


GROUPS = random_groups(60, 0)


def naive_pairs(groups: list[Group]) -> list[dict[str, Any]]:
    """Every untied pair, better answer first."""
    found = []
    for g in groups:
        assert g.defects is not None
        for a, b in combinations(range(len(g.ranks)), 2):
            if g.ranks[a] == g.ranks[b]:
                continue
            i, j = (a, b) if g.ranks[a] < g.ranks[b] else (b, a)
            between = {r for r in g.ranks if g.ranks[i] < r <= g.ranks[j]}
            found.append(
                {
                    "margin": g.scores[i] - g.scores[j],
                    "gap": len(between),
                    "lengths": (g.lengths[i], g.lengths[j]),
                    "defect": g.defects[j].split("+")[0] if g.defects[i] == "none" else None,
                }
            )
    return found


def hit(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def test_pairs_are_those_of_the_naive_loop() -> None:
    found = [(p.margin, p.gap, p.lengths, p.defect) for g in GROUPS for p in pairs_of(g)]
    assert sorted(found, key=str) == sorted(
        ((p["margin"], p["gap"], p["lengths"], p["defect"]) for p in naive_pairs(GROUPS)), key=str
    )


def test_accuracies_are_those_of_the_naive_loop() -> None:
    found, pairs = report(GROUPS), naive_pairs(GROUPS)
    margins = [p["margin"] for p in pairs]
    assert found["questions"] == len(GROUPS)
    assert found["pairs"] == len(pairs)
    assert found["accuracy"] == pytest.approx(fmean(map(hit, margins)))
    assert found["margin_mean"] == pytest.approx(fmean(margins))
    assert found["margin_std"] == pytest.approx(np.std(margins))
    assert found["p_margin_gt_0"] == pytest.approx(fmean(m > 0 for m in margins))
    assert found["p_margin_gt_0_5"] == pytest.approx(fmean(m > 0.5 for m in margins))
    for gap, value in found["accuracy_by_gap"].items():
        chosen = [hit(p["margin"]) for p in pairs if p["gap"] == int(gap)]
        assert value == pytest.approx(fmean(chosen)), f"gap {gap}"
    assert set(found["accuracy_by_gap"]) == {"1", "2", "3"}
    for defect, value in found["accuracy_by_kind"].items():
        chosen = [hit(p["margin"]) for p in pairs if p["defect"] == defect]
        assert value == pytest.approx(fmean(chosen)), defect
    assert set(found["accuracy_by_kind"]) == {"none", "wrong", "loop", "cut"}
    matched = [
        hit(p["margin"])
        for p in pairs
        if abs(p["lengths"][0] - p["lengths"][1]) / max(p["lengths"]) <= LENGTH_MATCH
    ]
    assert 0 < len(matched) < len(pairs)
    assert found["accuracy_length_matched"] == pytest.approx(fmean(matched))
    longer = [hit(p["lengths"][0] - p["lengths"][1]) for p in pairs]
    assert found["length_only_accuracy"] == pytest.approx(fmean(longer))


def tau_b(x: list[float], y: list[float]) -> float:
    """(concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)."""
    pairs = list(combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    agree = sum(a * b for a, b in signs)
    return float(agree / (sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs)) ** 0.5)


def rho(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of average ranks."""
    return float(pearsonr(rankdata(x), rankdata(y)).statistic)


def test_rank_correlations_agree_with_their_definitions() -> None:
    told = [g for g in GROUPS if len(set(g.scores)) > 1 and len(set(g.ranks)) > 1]
    assert 10 < len(told) < len(GROUPS)
    goodness = [[-r for r in g.ranks] for g in told]
    found = report(GROUPS)
    taus = [tau_b(list(g.scores), good) for g, good in zip(told, goodness, strict=True)]
    assert taus[0] == pytest.approx(kendalltau(told[0].scores, goodness[0]).statistic)
    assert found["kendall_tau"] == pytest.approx(fmean(taus))
    rhos = [rho(list(g.scores), good) for g, good in zip(told, goodness, strict=True)]
    assert found["spearman_rho"] == pytest.approx(fmean(rhos))


def test_length_correlations_agree_with_their_definitions() -> None:
    found = report(GROUPS)
    flat = [row for g in GROUPS for row in zip(g.scores, g.lengths, g.ranks, strict=True)]
    scores, lengths, ranks = map(np.array, zip(*flat, strict=True))
    assert found["length_correlation"] == pytest.approx(pearsonr(scores, lengths).statistic)
    # partial correlation by regression on dummies of rank
    dummies = (ranks[:, None] == np.unique(ranks)[None]).astype(float)
    left = [y - dummies @ np.linalg.lstsq(dummies, y, rcond=None)[0] for y in (scores, lengths)]
    assert found["length_correlation_given_rank"] == pytest.approx(pearsonr(*left).statistic)


def test_a_perfect_and_a_reversed_model() -> None:
    ranks, lengths = [1.0, 2.0, 2.0, 3.0], [9, 3, 7, 5]
    right = report([Group([4.0, 2.0, 2.0, 1.0], ranks, lengths)])
    wrong = report([Group([1.0, 2.0, 2.0, 4.0], ranks, lengths)])
    for key, best in (("accuracy", 1), ("kendall_tau", 1), ("spearman_rho", 1), ("top1", 1)):
        assert right[key] == pytest.approx(best), key
    for key, worst in (("accuracy", 0), ("kendall_tau", -1), ("spearman_rho", -1), ("top1", 0)):
        assert wrong[key] == pytest.approx(worst), key
    assert right["accuracy_by_gap"] == {"1": 1.0, "2": 1.0}


@pytest.mark.parametrize("ranks", [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
def test_a_model_that_gives_all_answers_one_score_knows_nothing(ranks: list[float]) -> None:
    found = report([Group([0.7] * 4, ranks, [5, 5, 5, 5])])
    assert found["accuracy"] == 0.5
    assert found["top1"] == 0.25, "the order of the rows in the file must not count"
    assert found["kendall_tau"] is None
    assert found["spearman_rho"] is None
    assert found["length_correlation"] is None


@pytest.mark.parametrize(
    "group", [Group([0.3], [1.0], [5]), Group([0.3, 0.4], [1.0, 1.0], [5, 6])], ids=["one", "ties"]
)
def test_groups_without_pairs_give_no_numbers(group: Group) -> None:
    found = report([group])
    assert found["pairs"] == 0
    assert found["top1"] == 1.0
    for key in ("accuracy", "margin_mean", "margin_std", "p_margin_gt_0", "kendall_tau"):
        assert found[key] is None, key
    assert found["accuracy_by_gap"] == {}


def test_no_groups_at_all() -> None:
    found = report([])
    assert found["questions"] == 0
    assert found["top1"] is None
    assert accuracy([]) is None
