"""Temperature and calibration error against naive loops and planted probabilities."""

import numpy as np
import pytest
from scipy.special import expit

from stages.rlhf.measure.calibration import (
    HIGHEST,
    LOWEST,
    ece,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from tests.conftest import naming


def calibrated(count: int, temperature: float, seed: int) -> np.ndarray:
    """Margins whose sign is right with probability sigmoid(|margin| / T)."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, 2, count))
    right = rng.random(count) < expit(size / temperature)
    return np.where(right, size, -size)


def test_the_planted_temperature_is_found() -> None:
    for temperature in (0.4, 1.0, 2.5):
        found = fit_temperature(calibrated(40_000, temperature, 0))
        assert found == pytest.approx(temperature, rel=0.05)


def test_it_is_the_minimum_of_a_grid() -> None:
    margins = calibrated(300, 1.3, 1)
    grid = np.geomspace(0.1, 10, 4001)
    losses = [-np.mean(np.log(expit(margins / t))) for t in grid]
    found = fit_temperature(margins)
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert negative_log_likelihood(margins, found) <= min(losses) + 1e-12


def test_it_scales_with_the_scores() -> None:
    margins = calibrated(500, 1.0, 2)
    for scale in (1e-6, 30.0, 1e200):
        assert fit_temperature(scale * margins) == pytest.approx(scale * fit_temperature(margins))


def test_without_a_minimum_it_is_the_bound() -> None:
    margins = np.array([1.0, 2.0, 2.0])
    unit = np.sqrt(np.mean(margins**2))
    assert fit_temperature(margins) == pytest.approx(LOWEST * unit, rel=1e-12), "all right"
    assert fit_temperature(-margins) == pytest.approx(HIGHEST * unit, rel=1e-12), "all wrong"
    assert fit_temperature(np.array([1.0, -1.0])) == pytest.approx(HIGHEST), "chance"
    assert fit_temperature(np.zeros(3)) == 1.0, "nothing known"


@pytest.mark.parametrize(
    ("margins", "facts"),
    [([], ["pairs"]), ([1.0, np.nan, np.inf], [2, 3, "margins", "finite"])],
)
def test_unusable_margins_are_refused(margins: list[float], facts: list[object]) -> None:
    with pytest.raises(ValueError, match=naming(*facts)):
        fit_temperature(np.array(margins))


def naive_ece(margins: np.ndarray, temperature: float, bins: int) -> float:
    """Both orders of a pair told apart by the higher score, one bin at a time."""
    rows = []
    for margin in margins:
        # the better answer has score margin, the other 0
        higher_is_better = 0.5 if margin == 0 else float(margin > 0)
        p = 1 / (1 + np.exp(-abs(margin) / temperature))
        rows.append((p, higher_is_better))
    total = 0.0
    for b in range(bins):
        low, high = 0.5 + 0.5 * b / bins, 0.5 + 0.5 * (b + 1) / bins
        held = [(p, o) for p, o in rows if low <= p and (p < high or b == bins - 1)]
        if held:
            p_mean = sum(p for p, _ in held) / len(held)
            o_mean = sum(o for _, o in held) / len(held)
            total += len(held) / len(rows) * abs(p_mean - o_mean)
    return total


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_ece_is_that_of_the_naive_loop(temperature: float) -> None:
    rng = np.random.default_rng(3)
    margins = np.round(rng.normal(0.4, 1, 400), 1)  # some are 0
    assert (margins == 0).any()
    for bins in (1, 5, 10):
        assert ece(margins, temperature, bins) == pytest.approx(
            naive_ece(margins, temperature, bins)
        ), bins


def test_ece_tells_calibrated_from_too_sure() -> None:
    margins = calibrated(40_000, 1.0, 4)
    honest, sure, shy = (ece(margins, t) for t in (1.0, 0.2, 10.0))
    assert honest is not None
    assert honest < 0.01
    assert sure is not None
    assert sure > 0.1
    assert shy is not None
    assert shy > 0.1


def test_reliability_lies_on_the_diagonal_where_calibrated() -> None:
    table = reliability(calibrated(40_000, 1.0, 5), 1.0)
    assert table.pairs.sum() == 40_000
    assert len(table.pairs) == 10
    np.testing.assert_allclose(table.predicted, table.observed, atol=0.03)
    assert ((table.low <= table.predicted) & (table.predicted <= table.high)).all()


def test_a_probability_on_an_edge_counts_in_the_upper_bin() -> None:
    """Equal scores claim 0.5, the lowest edge; 0.75 is the edge of two bins."""
    edge = np.log(3.0)
    assert expit(edge) == 0.75
    table = reliability(np.array([0.0, edge, 0.1]), 1.0, bins=2)
    assert table.low.tolist() == [0.5, 0.75]
    assert table.pairs.tolist() == [2, 1]


def test_extreme_margins_and_none() -> None:
    table = reliability(np.array([1e9, -1e9, 0.0]), 1e-3)
    assert table.pairs.tolist() == [1, 2]
    assert table.predicted.tolist() == [0.5, 1.0]
    assert table.observed.tolist() == [0.5, 0.5]
    assert ece(np.array([]), 1.0) is None
