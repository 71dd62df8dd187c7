"""Ranking metrics against scipy and naive loops, on random groups with ties."""

import json
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from stages.rlhf.measure.bootstrap import interval
from stages.rlhf.measure.calibration import ece
from stages.rlhf.measure.length_bias import correct
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import margins_of
from stages.rlhf.measure.ranking import (
    LENGTH_MATCH,
    Group,
    accuracy,
    full_report,
    pairs_of,
    report,
    tau_and_rho,
)
from stages.rlhf.records import write_metrics
from tests.conftest import naming

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
                kind=rng.choice(["never_asked", "unseen_wording", None]),
                tokens=[rng.randint(2, 6) for _ in range(size)],
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
    assert found["questions_without_pairs"] == 1
    for key in ("accuracy", "top1", "margin_mean", "margin_std", "p_margin_gt_0", "ece"):
        assert found[key] is None, key
        assert found[f"{key}_reason"], key
    assert found["kendall_tau"] is None
    assert found["accuracy_by_gap"] == {}
    beside = report([group, *GROUPS])
    alone = report(GROUPS)
    assert beside["questions_without_pairs"] == alone["questions_without_pairs"] + 1
    for key in ("accuracy", "top1", "kendall_tau", "margin_mean"):
        assert beside[key] == pytest.approx(alone[key]), key


def test_no_groups_at_all(tmp_path: Path) -> None:
    found = report([], resamples=10)
    assert found["questions"] == 0
    assert found["top1"] is None
    assert found["top1_reason"]
    assert accuracy([]) is None
    write_metrics(tmp_path / "rm.json", found)


def test_accuracy_agrees_with_sklearn() -> None:
    """Two grades of answer: pairwise accuracy is the area under the curve, ties counted half."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        ranks = rng.integers(1, 3, 40)
        ranks[:2] = 1, 2
        scores = rng.integers(0, 6, 40)
        found = report([Group(scores.tolist(), ranks.tolist(), [5] * 40)])
        assert found["accuracy"] == pytest.approx(roc_auc_score(ranks == 1, scores))


def test_rank_correlations_agree_with_scipy() -> None:
    checked = 0
    for group in GROUPS:
        found = tau_and_rho(group)
        goodness = [-r for r in group.ranks]
        if len(set(group.scores)) == 1 or len(set(group.ranks)) == 1:
            assert found is None
            continue
        assert found == pytest.approx(
            (kendalltau(group.scores, goodness)[0], spearmanr(group.scores, goodness)[0])
        )
        checked += 1
    assert checked > 20


def test_top1_is_a_mean_over_questions_with_an_order() -> None:
    told = [g for g in GROUPS if len(set(g.ranks)) > 1]
    assert len(told) < len(GROUPS)
    shares = []
    for g in told:
        chosen = [i for i, s in enumerate(g.scores) if s == max(g.scores)]
        shares.append(fmean(g.ranks[i] == min(g.ranks) for i in chosen))
    assert report(GROUPS)["top1"] == pytest.approx(fmean(shares))


def test_ece_is_that_of_the_margins() -> None:
    assert report(GROUPS, 0.7)["ece"] == ece(margins_of(GROUPS), 0.7)
    assert report(GROUPS, 0.7)["ece"] != report(GROUPS)["ece"]


def test_tokens_have_correlations_of_their_own() -> None:
    found = report(GROUPS)
    swapped = report([replace(g, lengths=g.tokens or []) for g in GROUPS])
    for key in ("length_correlation", "length_correlation_given_rank"):
        assert found[f"{key}_tokens"] == pytest.approx(swapped[key])
        assert found[f"{key}_tokens"] != pytest.approx(found[key])
    without = report([replace(GROUPS[0], tokens=None), *GROUPS[1:]], resamples=10)
    for key in ("", "_ci_low", "_ci_high"):
        assert without[f"length_correlation_tokens{key}"] is None
        assert without[f"length_correlation_tokens{key}_reason"]


BOUNDED = (
    "accuracy",
    "length_only_accuracy",
    "accuracy_above_length",
    "accuracy_length_matched",
    "kendall_tau",
    "spearman_rho",
    "top1",
    "length_correlation",
    "length_correlation_given_rank",
    "length_correlation_tokens",
    "length_correlation_given_rank_tokens",
)


def test_intervals_are_those_of_a_naive_bootstrap() -> None:
    """Draw questions, report on them, take the quantiles: with the same draws, the same ends."""
    seed, resamples = 5, 40
    found = report(GROUPS, resamples=resamples, seed=seed)
    draws = np.random.default_rng(seed).integers(len(GROUPS), size=(resamples, len(GROUPS)))
    naive = [report([GROUPS[i] for i in draw]) for draw in draws]
    for key in BOUNDED:
        ends = np.quantile([one[key] for one in naive], [0.025, 0.975])
        assert found[f"{key}_ci_low"] == pytest.approx(ends[0]), key
        assert found[f"{key}_ci_high"] == pytest.approx(ends[1]), key
        assert found[f"{key}_ci_low"] <= found[key] <= found[f"{key}_ci_high"], key


def test_intervals_depend_on_the_seed_alone() -> None:
    first, again, other = (report(GROUPS, resamples=200, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["accuracy_ci_low"] != other["accuracy_ci_low"]
    assert {k: v for k, v in first.items() if "_ci_" not in k} == report(GROUPS)


def two_answers(count: int, right: float, seed: int) -> list[Group]:
    """One pair a question, in the right order with this probability; the longer one is better."""
    rng = np.random.default_rng(seed)
    return [Group([float(h), 0.5], [1, 2], [9, 5]) for h in rng.random(count) < right]


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = []
    for seed in range(200):
        found = report(two_answers(100, 0.7, seed), resamples=200, seed=seed)
        covered.append(found["accuracy_ci_low"] <= 0.7 <= found["accuracy_ci_high"])
    assert 0.89 <= fmean(covered) <= 0.99
    wide = found["accuracy_ci_high"] - found["accuracy_ci_low"]
    assert wide == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 100) ** 0.5, rel=0.2)


def test_the_difference_to_length_is_paired() -> None:
    """A model that scores by length alone is not above length, in no resample."""
    rng = np.random.default_rng(3)
    groups = []
    for _ in range(50):
        lengths = rng.integers(5, 50, 4).tolist()
        groups.append(Group([float(n) for n in lengths], rng.permutation(4).tolist(), lengths))
    found = report(groups, resamples=100)
    assert found["accuracy_ci_low"] < found["accuracy_ci_high"]
    for key in ("", "_ci_low", "_ci_high"):
        assert found[f"accuracy_above_length{key}"] == pytest.approx(0.0)


def test_few_questions_have_no_interval() -> None:
    one = report([Group([1.0, 0.0], [1, 2], [9, 5])], resamples=50)
    assert one["accuracy"] == 1.0
    assert one["accuracy_ci_low"] is None
    assert one["accuracy_ci_low_reason"]
    # one question of ten has a pair of one length: most resamples would only repeat it
    lone = [*two_answers(9, 0.5, 0), Group([1.0, 0.0], [1, 2], [5, 5])]
    found = report(lone, resamples=200)
    assert found["accuracy_length_matched"] == 1.0
    assert found["accuracy_length_matched_ci_high"] is None
    assert found["accuracy_ci_low"] < found["accuracy_ci_high"]
    assert interval(np.array([1.0, np.nan, np.nan])) is None


def nulls(block: dict[str, Any]) -> list[str]:
    """Keys that are None without a reason, at any depth."""
    bad = [k for k, v in block.items() if v is None and not block.get(f"{k}_reason")]
    return bad + [k for v in block.values() if isinstance(v, dict) for k in nulls(v)]


def test_full_report_holds_every_block(tmp_path: Path) -> None:
    curve = LengthCurve((5.0, 14.0), (-2.0, 2.0))
    groups = [*GROUPS, Group([0.5], [1.0], [7], kind="lonely", tokens=[3])]
    found = full_report(groups, curve, 0.8, 1.2, 50, 7)
    assert set(found["by_kind"]) == {"never_asked", "unseen_wording", "lonely"}
    whole = {k: v for k, v in found.items() if k not in ("by_kind", "length_corrected")}
    assert whole == report(groups, 0.8, 50, 7)
    assert found["length_corrected"] == report(correct(groups, curve), 1.2, 50, 7)
    assert found["length_corrected"]["accuracy"] != found["accuracy"]
    some = [g for g in groups if g.kind == "never_asked"]
    block = dict(found["by_kind"]["never_asked"])
    assert block.pop("length_corrected") == report(correct(some, curve), 1.2, 50, 7)
    assert block == report(some, 0.8, 50, 7)
    assert not nulls(found)
    write_metrics(tmp_path / "rm.json", found)
    assert set(json.loads((tmp_path / "rm.json").read_text("utf-8"))) == set(found)
    assert (tmp_path / "rm.json").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"scores": [1.0, float("nan")]}, ["scores", "nan"]),
        ({"scores": [float("inf"), 1.0]}, ["scores", "inf"]),
        ({"ranks": [1.0, float("nan")]}, ["ranks", "nan"]),
        ({"ranks": [1.0]}, [2, "scores", 1, "ranks"]),
        ({"tokens": [1, 2, 3]}, [2, "scores", 3, "tokens"]),
        ({"scores": [], "ranks": [], "lengths": []}, []),
    ],
)
def test_unusable_groups_are_named(change: dict[str, Any], facts: list[object]) -> None:
    good = Group([1.0, 2.0], [1.0, 2.0], [3, 4])
    with pytest.raises(ValueError, match=naming("question 1", *facts)):
        report([good, replace(good, **change)])


def test_a_constant_is_not_correlated_by_rounding() -> None:
    """0.1 has no exact mean: what rounding leaves must not pass for variance."""
    groups = [Group([0.1] * 3, [1, 2, 3], [n, n + 3, n + 5]) for n in range(7, 30)]
    found = report(groups, resamples=20)
    assert found["length_correlation"] is None
    assert found["length_correlation_given_rank"] is None
    level_in_rank = [Group([0.1, 0.7, 0.3], [1, 2, 3], [n, n + 3, n + 5]) for n in range(7, 30)]
    found = report(level_in_rank)
    assert found["length_correlation"] is not None
    assert found["length_correlation_given_rank"] is None
    assert found["length_correlation_given_rank_reason"]
