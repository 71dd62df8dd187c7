"""Which model is PPO's result: the gate, limits one by one, the best chrF among what keeps them."""

from typing import Any

import pytest

from stages.rlhf.config.limits import Limits
from stages.rlhf.ppo.selection import Kept, broken_limits, decide

LIMITS = Limits(eos_slack=0.005, repetition_slack=0.006, length_band=0.15)
SFT = {
    "update": 0,
    "chrf_valid": 70.0,
    "eos_rate": 0.99,
    "repetition": 0.01,
    "copy_rate": 0.02,
    "length": 20.0,
}


def kept(*later: dict[str, float], reference_length: float = 20.0, **more: Any) -> Kept:
    """What is kept after SFT's row and updates 1, 2, ... that differ from it so."""
    rows = [SFT, *({**SFT, "update": i, **row} for i, row in enumerate(later, 1))]
    return decide(rows, reference_length, LIMITS, **{"patience": 99, **more})


def test_before_any_update_sft_is_kept() -> None:
    assert kept() == Kept(0, "no update beats SFT")


def test_the_best_chrf_of_valid_answers_is_kept() -> None:
    chrf = (69.0, 70.0, 71.0, 70.5, 71.0, 72.0)
    best = [kept(*({"chrf_valid": x} for x in chrf[:i])).update for i in range(len(chrf) + 1)]
    assert best == [0, 0, 0, 3, 3, 3, 6]
    assert kept({"chrf_valid": 71.0}).reason == "the best chrf_valid within the limits"


@pytest.mark.parametrize(
    ("key", "within", "broken"),
    [
        ("eos_rate", 0.9851, 0.9849),
        ("repetition", 0.0159, 0.0161),
        ("copy_rate", 0.0259, 0.0261),
        ("length", 22.9, 23.1),
        ("length", 17.1, 16.9),
    ],
)
def test_each_limit(key: str, within: float, broken: float) -> None:
    assert broken_limits({**SFT, key: within}, SFT, 20.0, LIMITS) == []
    assert broken_limits({**SFT, key: broken}, SFT, 20.0, LIMITS) == [key]
    refused = {"chrf_valid": 99.0, key: broken}
    assert kept(refused).update == 0
    assert kept(refused, {"chrf_valid": 71.0, key: within}).update == 2, (
        "a refused row became the best"
    )


def test_where_sft_itself_is_off_in_length_an_update_may_be_as_far_off() -> None:
    # SFT is 100 % off; half as long as the references is not between it and them
    lengths = {20.1: 0, 19.9: 1, 11.4: 1, 8.6: 1, 8.4: 0, 0.5: 0}
    found = {n: kept({"chrf_valid": 71.0, "length": n}, reference_length=10.0) for n in lengths}
    assert {n: one.update for n, one in found.items()} == lengths


def test_patience_counts_evaluations_since_the_last_better_one() -> None:
    better, worse = {"chrf_valid": 71.0}, {"chrf_valid": 60.0}
    assert kept(worse, better, worse, patience=2).stop is None
    found = kept(worse, better, worse, worse, patience=2)
    assert found.update == 2
    assert found.stop == "no better update in ppo.patience (2) evaluations"
    assert kept(worse, worse, patience=2).stop is not None


def test_behind_a_closed_gate_sft_is_kept_whatever_validation_says() -> None:
    found = kept({"chrf_valid": 99.0}, gate_failure="the judge does not agree")
    assert found == Kept(0, "the judge does not agree", stop="the judge does not agree")
    assert kept(gate_failure="the judge does not agree").stop is not None
