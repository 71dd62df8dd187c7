"""`koqa report` on commits of a small repository, and the example workflow by its commands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from stages.cli.main import koqa
from stages.rlhf.records import write_stage_metrics
from tests.conftest import ROOT

WORKFLOW = YAML(typ="safe").load(ROOT / ".github/workflows/report.yaml")
STEPS = {step["name"]: step for step in WORKFLOW["jobs"]["report"]["steps"] if "name" in step}
BEFORE = {
    "embedder_sha256": "aa",
    "ppo": {"chrf": 90.0, "exact": 0.5},
    "gates": {"ends": True, "rm_ok": True},
}
AFTER = {
    "embedder_sha256": "bb",
    "ppo": {"chrf": 95.0, "exact": 0.5},
    "gates": {"ends": False, "rm_ok": None, "rm_ok_reason": "the judge is at chance"},
}
HEADLINE = ("ppo.chrf", "ppo.exact", "gates.ends")
INTERVALS = {90.0: (89.0, 91.0), 95.0: (94.5, 95.5)}


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


def run(folder: Path, *words: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(koqa, ["report", *words])


def error(folder: Path, *words: str) -> str:
    """The one line of a command that must fail."""
    done = run(folder, *words)
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    return line


def write(folder: Path, evaluate: dict[str, Any], kl_coef: float) -> None:
    """The headline and details of `evaluate`, and a param."""
    low, high = INTERVALS[evaluate["ppo"]["chrf"]]
    inner = {**evaluate["ppo"], "chrf_ci_low": low, "chrf_ci_high": high}
    file = folder / "metrics" / "evaluate.json"
    write_stage_metrics(file, {**evaluate, "ppo": inner}, HEADLINE)
    (folder / "params.yaml").write_text(f"ppo:\n  kl_coef: {kl_coef}\n", "utf-8")


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "results")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone on the branch of a pull request; `main` is at the results before."""
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=origin, check=True)
    (origin / "dvc.yaml").write_text("metrics: [metrics/evaluate.json]\nparams: [params.yaml]\n")
    commit(origin)
    write(origin, BEFORE, 0.02)
    for name in ("ppo_curves", "13_similarity"):
        file = origin / "plots" / "evaluate" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    commit(origin)
    git(origin, "checkout", "-qb", "topic")
    write(origin, AFTER, 0.4)
    commit(origin)
    git(tmp_path, "clone", "-q", str(origin), "clone")  # it has no branch main, as in CI
    return tmp_path / "clone"


def test_the_workflow_writes_the_report(clone: Path, tmp_path: Path) -> None:
    sha = git(clone, "rev-parse", "HEAD")
    facts = {
        "github.base_ref": "main",
        "github.repository": "o/r",
        "github.event.pull_request.head.sha": sha,
    }

    def value(text: str) -> str:
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: facts[found[1]], text)

    step = STEPS["Report"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        **{name: value(text) for name, text in step["env"].items()},
    }
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=clone, env=environment, check=True)
    text = (clone / "report.md").read_text("utf-8")
    assert (tmp_path / "summary.md").read_text("utf-8") == text
    base = git(clone, "rev-parse", "--short=7", "origin/main")
    assert text.startswith(f"## Results against origin/main ({base})\n")
    failed = "**Gates that failed: ends (before: passed).**"
    assert f"{failed} Unknown: rm_ok (the judge is at chance)." in text
    assert "Another embedder" in text
    assert "1 of 2 headlines changed." in text
    assert (
        "| evaluate | `ppo.chrf` | 90 [89, 91] | 95 [94.50, 95.50] | **+5 [+3.8820, +6.1180]** |"
    ) in text
    assert "| evaluate | `ppo.exact` | 0.5000 |" in text
    assert "Params: `ppo.kl_coef` 0.02 → 0.4." in text
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    folder = f"https://raw.githubusercontent.com/o/r/{sha}/plots/evaluate"
    assert links == [f"{folder}/ppo_curves.png", f"{folder}/13_similarity.png"]


@pytest.mark.parametrize("remote", [False, True])
def test_the_workflow_gets_results_with_and_without_a_remote(
    clone: Path, tmp_path: Path, remote: bool
) -> None:
    dvc = [sys.executable, "-m", "dvc"]
    (tmp_path / "store").mkdir()
    if remote:
        add = [*dvc, "remote", "add", "-q", "-d", "store", str(tmp_path / "store")]
        subprocess.run(add, cwd=clone, check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", STEPS["Results"]["run"]],
        cwd=clone, env={**os.environ, "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("Everything is up to date." in done.stdout) == remote


def test_the_workflow_may_read_and_comment_and_nothing_else() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
    steps = WORKFLOW["jobs"]["report"]["steps"]
    checkout, python = (step for step in steps if "uses" in step)
    assert re.fullmatch(r"actions/checkout@[0-9a-f]{40}", checkout["uses"])
    assert checkout["with"]["fetch-depth"] == 0
    assert re.fullmatch(r"actions/setup-python@[0-9a-f]{40}", python["uses"])
    assert f"{STEPS['Install']['run']} && dvc repro" in (ROOT / "README.md").read_text("utf-8")
    for step in STEPS.values():  # what others name, a branch, never becomes part of a command
        assert "${{" not in step["run"]
    assert "--edit-last --create-if-none --body-file report.md" in STEPS["Comment"]["run"]


def test_by_default_it_compares_with_where_the_branch_left_main(clone: Path) -> None:
    base = git(clone, "rev-parse", "--short=7", "origin/main")
    git(clone, "checkout", "-qb", "main", "origin/main")
    write(clone, AFTER, 0.02)
    commit(clone)  # main goes on
    git(clone, "checkout", "-q", "topic")
    done = run(clone)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"Results against merge base with main ({base})\n")
    assert "*+5 [+3.8820, +6.1180]*" in done.stdout
    assert "plots/" not in done.stdout


def test_a_commit_without_metrics_has_no_earlier_values(clone: Path) -> None:
    root = git(clone, "rev-list", "--max-parents=0", "HEAD")
    done = run(clone, "--base", root)
    assert f"No earlier values: {root[:7]} has no metrics." in done.stdout
    inner = run(clone / "metrics", "--base", root)
    assert inner.stdout == done.stdout


def test_uncommitted_results_are_compared(clone: Path) -> None:
    write(clone, BEFORE, 0.4)
    assert "-5 [-6.1180, -3.8820]" in run(clone, "--base", "HEAD").stdout


def test_errors_are_one_sentence(clone: Path, tmp_path: Path) -> None:
    assert "unknown revision 'nowhere'" in error(clone, "--base", "nowhere")
    assert f"{tmp_path}: " in error(tmp_path)
    refused = run(clone, "--images", "https://example.org")
    assert refused.exit_code == 2
    assert "--images is for --md" in refused.stderr
    file = clone / "metrics" / "evaluate.json"
    file.write_text("{", "utf-8")
    assert "metrics/evaluate.json of the workspace: " in error(clone)
    file.unlink()
    assert "run dvc repro first" in error(clone)
