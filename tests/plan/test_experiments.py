"""Metrics of a revision: all of them where there are details, else the headline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.plan import compare_models, experiments
from stages.rlhf.plan.experiments import all_metrics, value
from stages.rlhf.records import write_stage_metrics

SFT = {"cosine": 0.5, "pearson": 0.25, "euclidean_similarity": 1, "euclidean_distance": 2}
EVALUATED = {"embedder_sha256": "0" * 64, "sft": SFT, "sft_gain": {"cosine": 0.1, "percent": 3.0}}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with all metrics in one file, one more with a headline and details."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    file = tmp_path / "metrics" / "evaluate.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"sft": {"cosine": 0.4, "pearson": 0.3}}), "utf-8")
    commit("whole")
    write_stage_metrics(file, EVALUATED, ["sft.cosine"])
    commit("split")
    file.with_name("gate.json").write_text("{}", "utf-8")
    return tmp_path


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def commit(message: str) -> None:
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message)


def test_details_are_read_of_every_revision(repository: Path) -> None:
    assert value(all_metrics("evaluate", "HEAD~1"), "sft.pearson") == 0.3
    assert value(all_metrics("evaluate", "HEAD"), "sft.pearson") == 0.25
    assert all_metrics("evaluate") == EVALUATED
    assert all_metrics("evaluate", root=repository / "metrics") is None
    assert all_metrics("gate") == {}
    assert all_metrics("gate", "HEAD") is None


def test_a_value_that_is_not_there_is_none() -> None:
    assert value(None, "a") is None
    assert value({"a": {"b": 1}}, "a.b") == 1
    assert value({"a": {"b": 1}}, "a.b.c") is None
    assert value({"a": {"b": 1}}, "c.b") is None


@pytest.mark.usefixtures("repository")
def test_what_has_not_finished_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str | None, state: str | None, rev: str) -> dict[str, Any]:
        return {"Experiment": name, "State": state, "rev": rev, "model": "tiny"}

    rows = [
        row(None, None, "workspace"),
        row("done", "Success", "HEAD"),
        row("first", "Success", "HEAD~1"),
        *(row(state, state, "HEAD") for state in ("Queued", "Running", "Failed")),
    ]
    monkeypatch.setattr(experiments.dvc.api, "exp_show", lambda repo: rows)
    found = compare_models.finished_runs()
    assert [run.experiment for run in found] == ["workspace", "done", "first"]
    assert [run.metrics["sft"]["cosine"] for run in found] == [0.5, 0.5, 0.4]
