"""dvc.yaml agrees with its commands: every path is declared, and code is a fingerprint."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.rlhf.runs.provenance import declared_params
from tests.conftest import ROOT

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = PIPELINE["stages"]


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_code_is_the_fingerprint_alone(stage: str) -> None:
    code = f"data/check/{stage}.json"
    assert code in STAGES[stage]["deps"]
    assert f"--code {code} " in STAGES[stage]["cmd"]
    assert not [dep for dep in STAGES[stage]["deps"] if dep.startswith("stages")]


def test_check_depends_on_all_code_and_all_params() -> None:
    assert STAGES["check"]["deps"] == ["params.yaml", "stages"]
    assert STAGES["check"]["outs"] == ["data/check"]


@pytest.mark.parametrize("stage", STAGES)
def test_command_is_the_module_of_that_name(stage: str) -> None:
    # a script path would import the library of another checkout inside `dvc exp run --temp`
    assert STAGES[stage]["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]
    assert STAGES[stage]["desc"]


@pytest.mark.parametrize("stage", STAGES)
def test_command_paths_are_declared(stage: str) -> None:
    declared = [dep for dep in STAGES[stage]["deps"] if not dep.startswith("stages/")]
    for kind in ("outs", "metrics"):
        for out in STAGES[stage].get(kind, []):
            declared.append(out if isinstance(out, str) else next(iter(out)))
    declared.append("metrics/runtime")  # times: in git, never hashed
    words = STAGES[stage]["cmd"].split()[3:]
    for path in (Path(word) for word in words if not word.startswith("--")):
        covered = any(path == Path(d) or Path(d) in path.parents for d in declared)
        within = any(path in Path(d).parents for d in declared)  # a folder, some files of it
        assert covered or within, f"{stage}: {path} is neither a dep nor an out"


def test_every_stage_module_is_in_the_pipeline() -> None:
    modules = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)


def test_metrics_and_figures_are_in_git_and_nothing_timed_is_hashed() -> None:
    for name, stage in STAGES.items():
        for out in [*stage.get("metrics", []), *stage.get("outs", [])]:
            path = out if isinstance(out, str) else next(iter(out))
            cached = isinstance(out, str) or out[path].get("cache", True)
            assert cached == path.startswith("data/"), f"{name}: {path}"
            assert "runtime" not in path, f"{name}: {path} holds times; dvc.lock would hash them"


def test_details_are_outs_and_no_metrics() -> None:
    """What `dvc metrics diff` shows is the headline."""
    for name, stage in STAGES.items():
        metrics = [next(iter(metric)) for metric in stage.get("metrics", [])]
        assert metrics in ([], [f"metrics/{name}.json"])
    assert "metrics" not in PIPELINE


def test_it_is_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text("utf-8").splitlines()) <= 420


def test_an_experiment_with_the_reward_model_leaves_the_judge_alone() -> None:
    judge = STAGES["judge"]
    reads = {*judge["deps"], *declared_params(judge)}
    assert not {name for name in reads if "rm" in name.split(".")[0].split("/") or "sft" in name}
    assert {"data/rm", "data/judge"} <= set(STAGES["gate"]["deps"])
    assert "metrics/gate.json" in STAGES["ppo"]["deps"]
