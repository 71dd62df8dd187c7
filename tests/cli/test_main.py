"""`koqa`: help without the heavy libraries, errors of one sentence."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from stages.cli import plan
from stages.cli.main import COMMANDS, koqa
from stages.rlhf.plan.footprint import Shape, memory
from stages.rlhf.runs.cache import LOCK
from stages.rlhf.runs.parallel import DOES_NOT_FIT
from tests.conftest import ROOT, write_params
from tests.model_fixtures import shipped

HEAVY = ("torch", "transformers", "dvc", "pandas", "numpy", "pydantic", "ruamel", "stages.rlhf")
PREPROCESSED = {
    "sft": {"rows": {"train": 300, "validation": 20, "test": 70}},
    "rm": {"rows": {"train": 200, "validation": 10, "judge_train": 40}},
    "ppo": {"rows": {"validation": 100}},
    "tokens": {"question": {"p50": 8}, "sft_answer": {"p50": 15, "p99": 32}},
}

STAGES = ["sft", "rm", "judge", "gate", "ppo", "evaluate"]


def run(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from stages.cli.main import koqa; koqa()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=where, capture_output=True, text=True
    )


def error(where: Path, *words: str) -> str:
    """The one line of a command that must fail."""
    done = run(where, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    code = (
        "import sys, json\n"
        "from stages.cli.main import koqa\n"
        f"koqa({[*words, '--help']!r}, standalone_mode=False)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, modules = done.stdout.splitlines()
    loaded = {m for m in json.loads(modules) if any(f"{m}.".startswith(f"{h}.") for h in HEAVY)}
    assert loaded == set()
    assert said[0].startswith("Usage: ")
    if not words:
        told = {line.split()[0]: line for line in said if line.startswith("  ")}
        assert all(not told[name].endswith("...") for name in COMMANDS), "help that is cut"


def test_every_file_beside_main_is_a_command() -> None:
    files = {f.stem for f in (ROOT / "stages" / "cli").glob("*.py")}
    assert files - {"__init__", "main", "options"} == set(COMMANDS)
    assert list(COMMANDS) == sorted(COMMANDS)


def test_the_script_is_installed_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == {"koqa": f"{koqa.callback.__module__}:{koqa.callback.__name__}"}


def test_plan_outside_a_repository_says_what_to_do(tmp_path: Path) -> None:
    line = error(tmp_path, "plan")
    assert "params.yaml: no such file" in line
    assert "repository's root" in line


def test_plan_before_preprocess_says_what_to_do(tmp_path: Path) -> None:
    write_params(tmp_path, model="micro")
    assert "dvc repro preprocess" in error(tmp_path, "plan")


def test_plan_says_what_a_run_needs(tmp_path: Path) -> None:
    write_params(tmp_path, model="micro")
    file = tmp_path / "metrics" / "details" / "preprocess.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(PREPROCESSED), "utf-8")
    done = run(tmp_path, "plan")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:8]] == STAGES
    assert lines[-1].startswith("Fits ")
    tight = run(tmp_path, "plan", "--memory", "0.1")
    assert tight.returncode == 1
    assert "Does not fit 0.1 GiB" in tight.stdout
    assert "ppo needs" in tight.stderr


def test_plan_says_of_one_stage_whether_it_fits(tmp_path: Path) -> None:
    """Before preprocess; the status is what a stage tells `does not fit` and `unknown` by."""
    write_params(tmp_path, model="micro")
    assert run(tmp_path, "plan", "--stage", "ppo").stdout == "whole\n"
    alone = ("plan", "--stage", "ppo", "--processes", "4", "--no-shard")
    assert run(tmp_path, *alone).stdout == "whole\n"
    tight = run(tmp_path, "plan", "--stage", "ppo", "--memory", "0.81")
    assert (tight.returncode, tight.stderr) == (DOES_NOT_FIT, "")
    assert tight.stdout.startswith("ppo needs ")
    assert "0.8 are available" in tight.stdout
    gone = {"architecture": None, "base": None, "path": "none"}
    write_params(tmp_path, model="micro", **{f"models.micro.{key}": v for key, v in gone.items()})
    assert "config.json: no such file" in error(tmp_path, "plan", "--stage", "ppo")


def test_the_stages_of_plan_are_those_it_counts() -> None:
    (option,) = (option for option in plan.main.params if option.name == "stage")
    assert isinstance(option.type, click.Choice)
    params = shipped()
    assert params.base_model.architecture is not None
    found = memory(Shape.made(params.base_model.architecture), params, "cuda")
    assert list(option.type.choices) == list(found) == STAGES


def test_compare_outside_a_repository_says_what_to_do(tmp_path: Path) -> None:
    assert f"{tmp_path}: no experiments" in error(tmp_path, "compare")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    line = error(tmp_path, "compare")
    assert f"{tmp_path}: no experiments" in line
    assert "git repository that has DVC set up" in line


def test_prune_removes_what_is_idle_and_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOQA_WORK", str(tmp_path / "work"))
    folder = tmp_path / "work" / "sft" / "0123"
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    assert run(tmp_path, "prune", "--days", "1").stdout == ""
    assert folder.exists()
    assert run(tmp_path, "prune").stdout == f"{folder}\n"
    assert not folder.exists()
    assert run(tmp_path, "prune").returncode == 0
