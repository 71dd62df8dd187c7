"""Each stage by two processes, on two hosts, and with a host that never comes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from stages.rlhf.runs.checkpoints import LOG, log_of
from stages.rlhf.runs.parallel import TORCHRUN
from stages.rlhf.runs.sharding import SHARD
from stages.rlhf.runtime import PROCESSES
from tests.compare_metrics import leaves
from tests.conftest import ROOT, write_params
from tests.runs.chaos import DVC, SMALL, STAGES, environment, repository, run

TOLERANCE = 1e-5  # of figures and adapters, where a stage reads the same inputs
FAR = 1e-4  # of weights that Adam has trained in full: where a gradient is next to nothing, its
# step is as long as elsewhere; and where a stage reads what others have made with two processes
COMMANDS = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def copied(uncut: Path, folder: Path) -> Path:
    """A copy of a repository in which all has run, for stages to run in it once more."""
    return Path(shutil.copytree(uncut, folder, ignore=shutil.ignore_patterns(".work")))


@pytest.fixture(scope="module")
def two(uncut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(uncut, tmp_path_factory.mktemp("parallel") / "two")


@pytest.fixture(scope="module")
def spread(uncut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(uncut, tmp_path_factory.mktemp("sharded") / "spread")


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_come_to_what_one_comes_to(
    two: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    command = [sys.executable, *COMMANDS[stage]["cmd"].split()[1:]]
    assert run(two, *command, seconds="30") == 0, two.parent / "log.txt"
    name = f"metrics/{stage}.json" if stage == "gate" else f"metrics/details/{stage}.json"
    found, told = weights(two), two / "metrics" / "runtime" / "runs" / f"{stage}.json"
    out = Path("data") / stage
    shutil.rmtree(two / out)
    shutil.copytree(uncut / out, two / out)  # for the next one
    assert numbers(two / name) == pytest.approx(numbers(uncut / name), abs=TOLERANCE, rel=TOLERANCE)
    assert_close(found, weights(uncut), FAR if stage in ("base", "sft") else TOLERANCE)
    assert json.loads(told.read_text("utf-8"))["processes"] == 2


@pytest.mark.parametrize("stage", ["rm", "ppo", "evaluate"])
def test_backbones_spread_over_two_come_to_the_same(
    spread: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv(SHARD, "1")
    test_two_processes_come_to_what_one_comes_to(spread, uncut, monkeypatch, stage)
    assert "layers spread over 2 processes" in (spread.parent / "log.txt").read_text()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors below data/, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted((folder / "data").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


def numbers(file: Path) -> dict[str, Any]:
    """All numbers of a stage; hashes differ where last digits do."""
    found = leaves(json.loads(file.read_text("utf-8")))
    return {name: value for name, value in found if isinstance(value, int | float)}


def test_a_stop_ends_both_with_their_step_saved(
    uncut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(uncut, tmp_path / "stopped"))
    write_params(folder, **{**SMALL, "models.micro.base.steps": 100_000})
    command = [sys.executable, *COMMANDS["base"]["cmd"].split()[1:]]
    begun = []
    for processes in ("2", "1"):  # then by one, from there
        given = {**environment(folder, "0"), PROCESSES: processes}
        with (tmp_path / "said.txt").open("w+") as out:
            stage = subprocess.Popen(command, cwd=folder, env=given, stdout=out, stderr=out)
            before = len(saved(folder))
            wait_for(lambda: len(saved(folder)) > before + 3)  # noqa: B023
            stage.send_signal(signal.SIGTERM)
            assert stage.wait(timeout=60) == 1
            out.seek(0)
            assert "the same command resumes from there" in out.read()
        begun.append(max(saved(folder)))
    (run,) = unfinished(folder)
    assert [line["from"] for line in log_of(run) if "from" in line] == [0, begun[0]]


def saved(folder: Path) -> list[int]:
    """Steps at which stage base has saved, of a run that has not ended."""
    return [line["saved"] for run in unfinished(folder) for line in log_of(run) if "saved" in line]


def unfinished(folder: Path) -> list[Path]:
    """Work folders of stage base without a result."""
    logs = folder.glob(f".work/base/*/{LOG}")
    return [log.parent for log in logs if not (log.parent / "done").exists()]


def wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 90
    while not found():
        assert time.monotonic() < until
        time.sleep(0.1)


def hosts(*folders: Path, options: str, target: str) -> list[int]:
    """`dvc repro` of a target in each of the folders at once, as on hosts of their own."""
    rendezvous = f"--nnodes=2 --rdzv-backend=c10d {options}"
    started = []
    for folder in folders:
        with (folder.parent / f"{folder.name}.txt").open("w") as out:
            given = {**environment(folder, "30"), PROCESSES: "1", TORCHRUN: rendezvous}
            command = [*DVC, "repro", target]
            started.append(subprocess.Popen(command, cwd=folder, env=given, stdout=out, stderr=out))
    return [process.wait(timeout=600) for process in started]


def test_two_hosts_train_as_one_and_each_has_the_models(tmp_path: Path, uncut: Path) -> None:
    folders = [repository(tmp_path / name) for name in ("first", "second")]
    options = "--rdzv-endpoint=127.0.0.1:29517 --rdzv-conf=join_timeout=120"
    codes = hosts(*folders, options=options, target="rm")
    assert codes == [0, 0], [(tmp_path / f"{f.name}.txt").read_text()[-2000:] for f in folders]
    first, second = ((folder / "dvc.lock").read_bytes() for folder in folders)
    assert first == second
    found = weights(folders[1])
    assert {name.split("/")[1] for name in found} == {"base", "sft", "rm"}
    assert_close(found, {k: v for k, v in weights(uncut).items() if k in found}, FAR)


def test_a_host_that_nobody_joins_ends_in_the_time_it_was_given(tmp_path: Path) -> None:
    folder, started = repository(tmp_path / "alone"), time.monotonic()
    options = "--rdzv-endpoint=127.0.0.1:29518 --rdzv-conf=join_timeout=5"
    assert hosts(folder, options=options, target="base") != [0]
    said = (tmp_path / "alone.txt").read_text()
    assert "RendezvousTimeoutError" in said
    assert "one of 1 processes ended" in said
    assert time.monotonic() - started < 120
