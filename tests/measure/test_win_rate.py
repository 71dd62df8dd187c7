"""Win rates by hand, planted effects, and the logistic regression against scipy's optimum."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from stages.rlhf.measure import bootstrap
from stages.rlhf.measure.win_rate import RIDGE, length_controlled, mean_and_interval, win_rates

RATE = "win_rate_length_controlled"


def test_ties_are_half_a_win_or_left_out() -> None:
    ours = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    theirs = np.array([0.0, 1.0, 4.0, 4.0, 0.0])
    same = np.array([False, False, False, False, True])  # the last: one text, scores by rounding
    found = win_rates(ours, theirs, same, 200, 0)
    assert found["win_rate"] == pytest.approx((2 + 0.5 + 0.5) / 5)
    assert found["win_rate_decided"] == pytest.approx(2 / 3)
    assert 0 <= found["win_rate_ci_low"] < found["win_rate"] < found["win_rate_ci_high"] <= 1


def test_nothing_but_ties_has_no_decided_rate() -> None:
    found = win_rates(np.ones(4), np.zeros(4), np.ones(4, dtype=bool), 50, 0)
    assert (found["win_rate"], found["win_rate_decided"]) == (0.5, None)
    assert found["win_rate_decided_reason"]


def test_the_interval_holds_the_true_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        ours = (rng.random(120) < 0.7).astype(float)
        found = win_rates(ours, 1 - ours, np.zeros(120, dtype=bool), 300, trial)
        held += found["win_rate_ci_low"] <= 0.7 <= found["win_rate_ci_high"]
    assert 0.9 <= held / 200 <= 0.99


def planted(theta: float, phi: float, count: int, seed: int) -> tuple[Any, Any]:
    """Margins that follow a constant and length; ours are mostly the longer answers."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(8, 10, count).round()
    return theta + phi * np.tanh(gaps / gaps.std()) + 0.1 * rng.normal(size=count), gaps


def test_a_planted_effect_is_recovered_whatever_length_does() -> None:
    for theta in (-1.0, 0.0, 0.5):
        for phi in (0.0, 2.0):
            margins, gaps = planted(theta, phi, 800, seed=3)
            found = length_controlled(margins, gaps, 200, 0)
            assert found[RATE] == pytest.approx(expit(theta), abs=0.02), (theta, phi)
            assert found[f"{RATE}_ci_low"] < found[RATE] < found[f"{RATE}_ci_high"]
    biased = expit(planted(0.0, 2.0, 800, seed=3)[0]).mean()
    assert biased > 0.6, "without the control, length would have won"


def test_the_fit_is_the_least_cross_entropy() -> None:
    margins, gaps = planted(0.4, -1.0, 60, seed=1)
    p, x = expit(margins), np.tanh(gaps / gaps.std())

    def loss(beta: Any) -> float:
        z = beta[0] + beta[1] * x
        cross = np.logaddexp(0, z) - p * z
        return float(cross.sum() + RIDGE * beta[1] ** 2 / 2)

    best = minimize(loss, [0.0, 0.0], tol=1e-12).x
    assert length_controlled(margins, gaps, 0, 0)[RATE] == pytest.approx(expit(best[0]), abs=1e-5)


def test_equal_lengths_leave_the_mean_belief() -> None:
    margins = np.array([-1.0, 0.5, 2.0, 9.0])
    found = length_controlled(margins, np.zeros(4), 50, 0)
    assert found[RATE] == pytest.approx(expit(margins).mean(), abs=1e-9)


def test_a_judge_that_is_sure_of_everything_still_gives_a_rate() -> None:
    found = length_controlled(np.full(20, 40.0), np.arange(20.0), 50, 0)
    assert found[RATE] > 0.99
    assert length_controlled(np.zeros(0), np.zeros(0), 50, 0)[RATE] is None


def test_a_mean_leaves_out_what_a_metric_does_not_speak_of() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0])
    found = mean_and_interval("contains", values, 300, 0, "nothing")
    assert found["contains"] == 3
    assert 1 <= found["contains_ci_low"] < 3 < found["contains_ci_high"] <= 5
    assert mean_and_interval("contains", values * np.nan, 300, 0, "nothing") == {
        "contains": None,
        "contains_reason": "nothing",
    }
    assert mean_and_interval("contains", values, 0, 0, "nothing") == {"contains": 3}


def test_every_interval_is_of_the_same_draws() -> None:
    margins, _ = planted(0.3, 0.0, 40, seed=5)
    found = length_controlled(margins, np.zeros(40), 300, 7)
    # without lengths the rate is the mean belief: the interval must be that mean's own
    mean = mean_and_interval("mean", expit(margins), 300, 7, "")
    for end in ("ci_low", "ci_high"):
        assert found[f"{RATE}_{end}"] == pytest.approx(mean[f"mean_{end}"], abs=1e-9)


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, resamples = 90, 301
    margins, gaps = planted(0.3, 0.5, questions, seed=6)
    places = np.random.default_rng(8).integers(questions, size=(resamples, questions))
    expected = [np.bincount(row, minlength=questions) for row in places]
    found = []
    for block in (1, 1000, 10**6):  # a row, eleven rows, all rows at once
        monkeypatch.setattr(bootstrap, "BLOCK", block)
        (counts,) = bootstrap.bootstrap_counts(questions, resamples, 8)
        np.testing.assert_array_equal(counts, expected)
        found.append(length_controlled(margins, gaps, resamples, 8))
    assert found[0] == found[1] == found[2]


def test_a_question_more_costs_its_counts() -> None:
    peaks = []
    for questions in (1000, 2000):
        margins, gaps = planted(0.3, 0.5, questions, seed=7)
        tracemalloc.start()
        length_controlled(margins, gaps, 1000, 9)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 1,000 resamples: 8 bytes each for its count, beside what a block takes whatever their number
    assert (peaks[1] - peaks[0]) / 1000 < 1.5 * 8 * 1000, peaks
