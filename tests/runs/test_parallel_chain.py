"""The whole pipeline by two processes, on two hosts, and with a host that never comes."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.rlhf.runs.parallel import TORCHRUN
from stages.rlhf.runtime import PROCESSES
from tests.compare_metrics import leaves
from tests.runs.chaos import DVC, STAGES, environment, repository, run

TOLERANCE = 1e-4  # of figures and weights that several stages have led to; 1e-5 for one alone
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `dvc repro` has run with two processes a stage."""
    folder = repository(tmp_path_factory.mktemp("parallel") / "two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROCESSES, "2")
        assert run(folder, *DVC, "repro", seconds="30") == 0, folder.parent / "log.txt"
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors below data/, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted((folder / "data").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_two_processes_make_the_models_of_one(two: Path, uncut: Path) -> None:
    found, expected = weights(two), weights(uncut)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_measure_what_one_does(two: Path, uncut: Path, stage: str) -> None:
    name = f"metrics/{stage}.json" if stage == "gate" else f"metrics/details/{stage}.json"
    found, expected = numbers(two / name), numbers(uncut / name)
    assert found == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
    runs = json.loads((two / "metrics" / "runtime" / "runs" / f"{stage}.json").read_text())
    assert runs["processes"] == 2


def numbers(file: Path) -> dict[str, Any]:
    """All numbers of a stage; hashes differ where last digits do."""
    found = leaves(json.loads(file.read_text("utf-8")))
    return {name: value for name, value in found if isinstance(value, int | float)}


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
    found, expected = weights(folders[1]), weights(uncut)
    assert any("rm" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=TOLERANCE, msg=name)


def test_a_host_that_nobody_joins_ends_in_the_time_it_was_given(tmp_path: Path) -> None:
    folder, started = repository(tmp_path / "alone"), time.monotonic()
    options = "--rdzv-endpoint=127.0.0.1:29518 --rdzv-conf=join_timeout=5"
    assert hosts(folder, options=options, target="base") != [0]
    said = (tmp_path / "alone.txt").read_text()
    assert "RendezvousTimeoutError" in said
    assert "one of 1 processes ended" in said
    assert time.monotonic() - started < 120
