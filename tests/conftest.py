"""Helpers that several tests share."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SMALL = {  # params with which the whole pipeline takes a minute
    "model": "micro",
    "threads": 1,
    "sample.demonstrations": 160,
    "sample.groups": 80,
    "sample.judge_groups": 20,
    "sample.prompts": 120,
    "sample.documents": 2000,
    "embedder.epochs": 1,
    "evaluate.max_questions": 24,
    "ppo.value_warmup": 1,
    "ppo.evaluate_every": 1,
    "ppo.require_gate": False,
    "rm.resamples": 50,
    "judge.resamples": 50,
    "gate.resamples": 50,
    "evaluate.resamples": 50,
}


@pytest.fixture(autouse=True)
def _work_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test goes on with the checkpoints of another, or of the repository."""
    monkeypatch.setenv("KOQA_WORK", str(tmp_path / ".work"))


def write_params(folder: Path, **overrides: Any) -> Path:
    """A copy of the repository's params.yaml, with changes: `**{"model": "micro", "a.b": 1}`."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for address, value in overrides.items():
        *sections, key = address.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[key] = str(value) if isinstance(value, Path) else value
    target = folder / "params.yaml"
    with target.open("w", encoding="utf-8") as out:
        yaml.dump(params, out)
    return target
