"""The length curve on planted data: a pure bias goes, a true relation stays or is measured."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stages.rlhf.measure.length_bias import correct, fit_length_curve, worth_applying
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, accuracy, margins_of
from stages.rlhf.measure.ranking import report
from tests.conftest import naming


def bias(lengths: np.ndarray) -> np.ndarray:
    """A bent planted length bias."""
    return 1.5 * np.tanh((lengths - 60) / 20)


def nothing(lengths: np.ndarray) -> np.ndarray:
    return 0.0 * lengths


def planted(
    count: int, seed: int, bent: Any = bias, quality_in_length: float = 0.0, by_question: float = 0
) -> list[Group]:
    """Five answers a question: score = quality + bias(length) + by_question * typical length."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        quality = rng.normal(size=5)
        typical = rng.uniform(30, 90)
        lengths = typical + 15 * rng.normal(size=5) + 15 * quality_in_length * quality
        lengths = np.maximum(lengths, 3).round().astype(int)
        scores = quality + bent(lengths) + by_question * typical + 0.3 * rng.normal(size=5)
        ranks = np.argsort(np.argsort(-quality)) + 1.0
        groups.append(
            Group(scores.tolist(), ranks.tolist(), lengths.tolist(), tokens=(lengths // 3).tolist())
        )
    return groups


def without_ranks(groups: list[Group]) -> list[Group]:
    """What a fit that knows no ranks sees."""
    return [replace(group, ranks=[1.0] * len(group.ranks)) for group in groups]


def test_a_planted_bias_is_found_and_removed() -> None:
    curve = fit_length_curve(planted(500, 0))
    at = np.array([25, 40, 60, 80, 95])
    shift = curve.at([60]) - bias(np.array([60]))
    np.testing.assert_allclose(curve.at(at) - shift, bias(at), atol=0.2)
    fresh = planted(300, 1)
    before, after = report(fresh), report(correct(fresh, curve))
    assert before["length_correlation_given_rank"] > 0.5
    assert abs(after["length_correlation_given_rank"]) < 0.05
    worth, raw, corrected = worth_applying(fresh, correct(fresh, curve))
    assert worth
    assert raw is not None
    assert corrected is not None
    assert corrected > raw + 0.03


def test_differences_between_questions_are_no_bias() -> None:
    """Questions with long answers have high scores; within a question length says nothing."""
    curve = fit_length_curve(planted(500, 2, nothing, by_question=0.1))
    assert np.ptp(curve.offsets) < 0.4, "the questions alone span 6"
    flat = fit_length_curve(planted(500, 0, by_question=0.1))
    np.testing.assert_allclose(
        flat.at([40, 80]), fit_length_curve(planted(500, 0)).at([40, 80]), atol=0.05
    )


def test_a_true_relation_of_quality_and_length_is_kept() -> None:
    """Better answers are longer and nothing else: removing length would remove quality."""
    groups, fresh = planted(500, 3, nothing, 1.0), planted(300, 4, nothing, 1.0)
    raw = accuracy(margins_of(fresh))
    kept = accuracy(margins_of(correct(fresh, fit_length_curve(groups))))
    naive = accuracy(margins_of(correct(fresh, fit_length_curve(without_ranks(groups)))))
    assert raw is not None
    assert kept is not None
    assert naive is not None
    assert raw - naive > 0.1, "a curve that knows no ranks takes the quality with it"
    assert raw - kept < 0.3 * (raw - naive)


def test_a_costly_curve_is_not_applied() -> None:
    groups, fresh = planted(500, 3, nothing, 1.0), planted(300, 4, nothing, 1.0)
    costly = fit_length_curve(without_ranks(groups))
    worth, raw, corrected = worth_applying(fresh, correct(fresh, costly))
    assert not worth
    assert raw is not None
    assert corrected is not None
    assert raw == accuracy(margins_of(fresh))
    assert corrected == accuracy(margins_of(correct(fresh, costly)))
    assert worth_applying(fresh, correct(fresh, costly), tolerance=raw - corrected)[0], (
        "exactly the tolerance"
    )
    assert not worth_applying(fresh, correct(fresh, costly), tolerance=raw - corrected - 0.001)[0]
    single = [Group([1.0], [1.0], [5])]
    assert worth_applying(single, single) == (False, None, None)


def test_offsets_have_mean_zero_over_the_fit() -> None:
    groups = planted(200, 5)
    curve = fit_length_curve(groups)
    offsets = curve.at([n for g in groups for n in g.lengths])
    assert abs(offsets.mean()) < 1e-9
    assert len(curve.lengths) <= 41


def test_units() -> None:
    groups = planted(200, 6)
    curve = fit_length_curve(groups, "tokens")
    assert curve.unit == "tokens"
    assert max(curve.lengths) == max(n for g in groups for n in g.tokens or [])
    first = correct(groups, curve)[0]
    assert groups[0].tokens is not None
    np.testing.assert_allclose(
        first.scores, np.array(groups[0].scores) - curve.at(groups[0].tokens)
    )
    with pytest.raises(ValueError, match=naming("tokens", "characters")):
        fit_length_curve([Group([1.0, 2.0], [1.0, 2.0], [3, 4])], "tokens")


@pytest.mark.parametrize(
    "groups",
    [
        [Group([1.0], [1.0], [5]), Group([3.0], [1.0], [9])],
        [Group([1.0, 2.0], [2.0, 1.0], [5, 5]), Group([3.0, 4.0], [1.0, 2.0], [9, 9])],
    ],
    ids=["one answer each", "one length each"],
)
def test_where_length_says_nothing_the_curve_is_level(groups: list[Group]) -> None:
    curve = fit_length_curve(groups)
    assert not curve.at([1, 5, 9, 100]).any()


def test_few_lengths_give_their_means() -> None:
    """Half of the answers share a length, more than LOWESS looks at: their mean is the curve."""
    rng = np.random.default_rng(7)
    groups = []
    for scores in rng.normal(0, 0.3, (800, 2)) + np.array([0.0, 1.0]):
        groups.append(Group(scores.tolist(), [1.0, 1.0], [[10, 20], [30, 20]][len(groups) % 2]))
    curve = fit_length_curve(groups)
    assert curve.lengths == (10.0, 20.0, 30.0)
    np.testing.assert_allclose(curve.at([20, 20]) - curve.at([10, 30]), 1, atol=0.05)


def test_the_curve_is_level_beyond_its_ends() -> None:
    curve = LengthCurve((10.0, 20.0), (-1.0, 3.0))
    np.testing.assert_allclose(curve.at([0, 10, 15, 20, 999]), [-1, -1, 1, 3, 3])


def test_json_and_back() -> None:
    curve = fit_length_curve(planted(60, 8), "tokens")
    assert LengthCurve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"lengths": [1.0, 1.0]}, ["lengths", (1.0, 1.0)]),
        ({"lengths": [2.0, 1.0]}, ["lengths", (2.0, 1.0)]),
        ({"lengths": [1.0]}, [1, "lengths", 2, "offsets"]),
        ({"lengths": [], "offsets": []}, [0, "lengths", "offsets"]),
        ({"offsets": [0.0, float("nan")]}, ["offsets", "nan"]),
        ({"offsets": "ab"}, ["offsets", "numbers"]),
        ({"offsets": [0.0, None]}, ["offsets", "numbers"]),
        ({"unit": "words"}, ["unit", "words", "tokens", "characters"]),
        ({"more": 1}, ["more", "offsets"]),
    ],
)
def test_a_broken_curve_is_refused(change: dict[str, Any], facts: list[object]) -> None:
    plain = {"unit": "tokens", "lengths": [1.0, 2.0], "offsets": [0.0, 1.0]}
    with pytest.raises(ValueError, match=naming("length curve", *facts)):
        LengthCurve.from_dict(plain | change)


def test_bad_scores_name_the_question() -> None:
    good = Group([1.0, 2.0], [1.0, 2.0], [3, 4])
    with pytest.raises(ValueError, match=naming("question 1", "scores", "nan")):
        fit_length_curve([good, replace(good, scores=[1.0, float("nan")])])
    with pytest.raises(ValueError, match=naming("groups")):
        fit_length_curve([])
