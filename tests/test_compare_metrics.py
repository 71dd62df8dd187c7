"""CI's comparison of committed metrics with fresh ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compare_metrics import compare

SFT = {"chrf": 97.0, "length": 37.0}
METRICS: dict[str, Any] = {
    "details/ppo.json": {"eos_rate": 0.9, "skipped": False, "validation": {"sft": {"chrf": 80}}},
    "ppo.json": {"eos_rate": 0.9},
    "gate.json": {"best_of_4": {"passed": True}},
    "details/preprocess.json": {"tokens": {"p50": 8, "p50_reason": "a word"}},
    "preprocess.json": {},
    "details/rm.json": {"level": 0.0, "level_ci_low": None, "level_ci_high": None},
    "rm.json": {},
    "details/evaluate.json": {
        "base": {"chrf": 6.0, "length": 15.5},
        "sft": SFT,
    },
    "evaluate.json": {},
}


def written(folder: Path, **changed: Any) -> Path:
    for name, content in {**METRICS, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("details/ppo.json", METRICS["details/ppo.json"], []),
        ("ppo.json", {}, []),
        ("details/ppo.json", {**METRICS["details/ppo.json"], "eos_rate": 0.8}, []),
        ("details/ppo.json", {**METRICS["details/ppo.json"], "eos_rate": 0.6}, ["ppo: eos_rate"]),
        ("details/ppo.json", {"eos_rate": 0.9, "skipped": True}, ["ppo: skipped", "chrf is gone"]),
        ("gate.json", {"best_of_4": {"passed": False}}, ["gate: best_of_4.passed"]),
        ("details/rm.json", {"level": None, "level_reason": "no answer"}, []),
        ("details/rm.json", {"level": 0.0}, ["level_ci_low is gone", "level_ci_high is gone"]),
        ("details/rm.json", {"level": None}, ["level_ci_low is gone", "level_ci_high is gone"]),
        ("details/evaluate.json", {"base": {"chrf": 9.0, "length": 24.4}, "sft": SFT}, []),
        (
            "details/evaluate.json",
            {"base": {"chrf": 15.0, "length": 15.5}, "sft": {**SFT, "length": 31.0}},
            ["evaluate: base.chrf", "evaluate: sft.length"],
        ),
        ("details/preprocess.json", {"tokens": {"p50": 9}}, ["preprocess: tokens.p50 was 8"]),
    ],
)
def test_what_is_told(tmp_path: Path, name: str, content: Any, told: list[str]) -> None:
    old = written(tmp_path / "old")
    new = written(tmp_path / "new", **{name: content})
    found = compare(old, new)
    assert len(found) == len(told)
    assert all(any(part in line for line in found) for part in told), found


def test_a_file_that_was_not_made_is_told(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old"), written(tmp_path / "new")
    (new / "details" / "ppo.json").unlink()
    (new / "gate.json").unlink()
    (gate, ppo) = compare(old, new)
    assert gate.endswith("gate.json was not made")
    assert ppo.endswith("details/ppo.json was not made")
