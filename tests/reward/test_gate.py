"""What metrics/gate.json says."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.reward.gate import Verdict, gate_failure, judge_doubt, read_gate, vouched
from tests.conftest import naming


def write_gate(folder: Path, **gate: Any) -> Path:
    file = folder / "gate.json"
    file.write_text(json.dumps({"best_of_4": gate}))
    return file


def test_the_gate_is_read_from_its_metrics(tmp_path: Path) -> None:
    figures = {"gain": 0.05, "gain_ci_low": -0.1, "gain_ci_high": 0.2}
    assert gate_failure(write_gate(tmp_path, passed=True, **figures)) is None
    reason = gate_failure(write_gate(tmp_path, passed=False, **figures))
    assert reason is not None
    assert "+0.050 sd [-0.100, +0.200]" in reason


# Accuracy, "the longer is better", and the difference, each with its interval: of a first run on
# real text (95 groups) and of the default run.
AT_CHANCE = {
    "questions": 19,
    **{"accuracy": 0.536, "accuracy_ci_low": 0.443, "accuracy_ci_high": 0.638},
    "length_only_accuracy": 0.503,
    **{"accuracy_above_length": 0.033, "accuracy_above_length_ci_low": -0.11},
    "accuracy_above_length_ci_high": 0.17,
}
GOOD = {
    "questions": 240,
    **{"accuracy": 0.855, "accuracy_ci_low": 0.840, "accuracy_ci_high": 0.871},
    "length_only_accuracy": 0.530,
    **{"accuracy_above_length": 0.325, "accuracy_above_length_ci_low": 0.300},
    "accuracy_above_length_ci_high": 0.350,
}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        (AT_CHANCE, False),
        ({"accuracy_above_length_ci_low": 0.0}, False),
        ({"accuracy_above_length_ci_low": 0.001}, True),
        ({"accuracy_ci_low": 0.499, "length_only_accuracy": 0.6}, False),
        ({"accuracy_ci_low": 0.501, "length_only_accuracy": 0.6}, True),
        ({"accuracy_ci_low": 0.69, "length_only_accuracy": 0.3}, False),  # the shorter wins: .7
        ({"accuracy_ci_low": 0.71, "length_only_accuracy": 0.3}, True),
        ({"accuracy_ci_low": None, "accuracy_ci_high": None}, False),
        ({"accuracy": None, "length_only_accuracy": None}, False),
    ],
)
def test_a_judge_counts_if_it_beats_chance_and_length(
    changed: dict[str, float | None], counts: bool
) -> None:
    assert (judge_doubt({**GOOD, **changed}) is None) is counts


def test_the_gate_of_a_judge_at_chance_is_unknown(tmp_path: Path) -> None:
    figures = {"gain": 0.24, "gain_ci_low": 0.11, "gain_ci_high": 0.38, "passed": True}
    judge = tmp_path / "judge.json"
    judge.write_text(json.dumps(GOOD))
    assert vouched(figures, judge) == figures
    judge.write_text(json.dumps(AT_CHANCE))
    found = vouched(figures, judge)
    assert found["passed"] is None
    file = write_gate(tmp_path, **found)
    verdict = read_gate(file)
    assert verdict == Verdict(None, found["passed_reason"])
    assert "accuracy 0.536 [0.443, 0.638] on 19 test groups" in str(verdict.reason)
    assert gate_failure(file) is None  # nothing speaks against the reward model
    judge.write_text("{}")
    with pytest.raises(ValueError, match=naming(judge, "accuracy")):
        vouched(figures, judge)


@pytest.mark.parametrize("text", ["", "{}", '{"best_of_4": {"passed": true}}', "[1]"])
def test_a_file_without_a_gate_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(ValueError, match=naming(tmp_path / "gate.json", "best_of_4")):
        gate_failure(tmp_path / "gate.json")
    with pytest.raises(ValueError, match=naming(tmp_path / "none.json", "best_of_4")):
        gate_failure(tmp_path / "none.json")
