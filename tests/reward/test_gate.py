"""What metrics/gate.json says."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.reward.gate import gate_failure
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


@pytest.mark.parametrize("text", ["", "{}", '{"best_of_4": {"passed": true}}', "[1]"])
def test_a_file_without_a_gate_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(ValueError, match=naming(tmp_path / "gate.json", "best_of_4")):
        gate_failure(tmp_path / "gate.json")
    with pytest.raises(ValueError, match=naming(tmp_path / "none.json", "best_of_4")):
        gate_failure(tmp_path / "none.json")
