"""What validation says of a reward model: a curve tried where it was not fitted, temperatures."""

import json
import random

import numpy as np
import pytest

from stages.rlhf.measure.calibration import fit_temperature
from stages.rlhf.measure.length_bias import correct, fit_length_curve
from stages.rlhf.measure.ranked_groups import Group, accuracy, margins_of
from stages.rlhf.measure.ranking import report
from stages.rlhf.reward.calibrate import calibrate
from stages.rlhf.reward.model import Calibration
from tests.conftest import naming


def planted(count: int, seed: int, bias: float, use: float) -> list[Group]:
    """Scores that follow quality and length; `use`: how far length itself follows quality."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        quality = rng.normal(size=5)
        tokens = np.maximum(2, (20 + 5 * rng.normal(size=5) + 5 * use * quality)).round()
        scores = 0.3 * rng.normal(size=5) + quality * (1 - use) + bias * (tokens - 20) / 5
        ranks = np.argsort(np.argsort(-quality)) + 1.0
        sizes = tokens.astype(int).tolist()
        groups.append(Group(scores.tolist(), ranks.tolist(), [3 * n for n in sizes], tokens=sizes))
    return groups


def test_a_bias_is_taken_off_and_the_model_gains() -> None:
    groups = planted(200, 0, bias=1.0, use=0.0)
    found = calibrate(groups, tolerance=0.01, seed=0)
    assert found.applied
    assert found.accuracy is not None
    assert found.accuracy_corrected is not None
    assert found.accuracy_corrected > found.accuracy + 0.05
    assert found.curve == fit_length_curve(groups, "tokens")  # fitted again on all of them
    other = planted(200, 1, bias=1.0, use=0.0)
    raw, fixed = (
        report(g)["length_correlation_given_rank"] for g in (other, correct(other, found.curve))
    )
    assert raw > 0.5 > 0.1 > abs(fixed)
    assert found.temperature == fit_temperature(margins_of(groups))
    assert found.temperature_corrected == fit_temperature(margins_of(correct(groups, found.curve)))
    assert found.temperature_corrected != found.temperature


def test_where_length_is_all_the_model_knows_the_curve_stays_off() -> None:
    groups = planted(200, 0, bias=1.0, use=1.0)
    found = calibrate(groups, tolerance=0.01, seed=0)
    assert not found.applied
    assert found.accuracy is not None
    assert found.accuracy_corrected is not None
    assert found.accuracy_corrected < found.accuracy - 0.05
    assert len(found.curve.lengths) > 1  # kept, to be reported


def test_no_tolerance_means_never() -> None:
    groups = planted(100, 0, bias=1.0, use=0.0)
    assert calibrate(groups, 0.0, seed=0).applied
    assert not calibrate(groups, None, seed=0).applied


def test_each_half_is_corrected_by_the_curve_of_the_other() -> None:
    groups = planted(21, 0, bias=1.0, use=0.0)
    found = [calibrate(groups, 0.01, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].accuracy == found[2].accuracy == accuracy(margins_of(groups))
    assert found[0].accuracy_corrected != found[2].accuracy_corrected  # other halves
    assert found[0].curve == found[2].curve
    order = random.Random(0).sample(range(21), 21)
    halves = order[::2], order[1::2]
    right = total = 0
    for fitted, tried in (halves, halves[::-1]):
        curve = fit_length_curve([groups[i] for i in sorted(fitted)], "tokens")
        margins = margins_of(correct([groups[i] for i in tried], curve))
        right, total = right + int((margins > 0).sum()), total + len(margins)
    assert found[0].accuracy_corrected == pytest.approx(right / total)


def test_one_question_cannot_try_a_curve() -> None:
    found = calibrate(planted(1, 0, bias=1.0, use=0.0), 0.01, 0)
    assert (found.applied, found.accuracy, found.accuracy_corrected) == (False, None, None)


def test_only_ties_are_refused() -> None:
    tied = Group([1.0, 2.0], [1.0, 1.0], [3, 4], tokens=[1, 2])
    with pytest.raises(ValueError, match=naming("validation", "rank")):
        calibrate([tied, tied], 0.01, 0)


def test_to_json_and_back() -> None:
    found = calibrate(planted(30, 0, bias=1.0, use=0.0), 0.01, 0)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
