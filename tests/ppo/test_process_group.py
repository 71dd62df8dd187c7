"""Two processes train as one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.rlhf.runs.process_group import ProcessGroup
from tests.conftest import naming
from tests.model_fixtures import ROOT, ppo_settings, ppo_trainer
from tests.ppo.two_processes import work


@pytest.fixture(scope="module", params=["gae", "rloo", "grpo"])
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, torch.Tensor]]:
    """What one process made, and each of two."""
    folder = tmp_path_factory.mktemp("process_group")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.ppo.two_processes", str(folder / "two"), request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    work(folder / "one", request.param)
    files = folder / "one" / "0.safetensors", *(folder / "two" / f"{i}.safetensors" for i in (0, 1))
    return [load_file(file) for file in files]


def test_two_processes_say_the_same_tokens_as_one(runs: list[dict[str, torch.Tensor]]) -> None:
    one, *two = runs
    assert all(run["ids"].equal(one["ids"]) for run in two)
    assert all(run["rows"].equal(one["rows"]) for run in two)
    for name in one.keys() & {"advantages", "returns", "reward"}:
        torch.testing.assert_close(two[0][name], one[name], rtol=0, atol=1e-5)


def test_two_processes_hold_the_same_bits(runs: list[dict[str, torch.Tensor]]) -> None:
    _, first, second = runs
    assert [key for key in first if not first[key].equal(second[key])] == []


def test_two_processes_learn_what_one_does(runs: list[dict[str, torch.Tensor]]) -> None:
    one, two, _ = runs
    for key, weight in one.items():
        torch.testing.assert_close(two[key], weight, rtol=1e-4, atol=1e-5, msg=key)
    assert one["row2"][2] > 0, "approx_kl: the steps changed nothing"


def test_a_process_without_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming("minibatches", 8, 9)):
        ppo_trainer(tmp_path, settings=ppo_settings(), process_group=ProcessGroup(0, 9))


def test_alone_nothing_is_summed() -> None:
    tensor = torch.ones(2)
    ProcessGroup().sum([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert ProcessGroup().shard([3, 1, 2]) == [3, 1, 2]
    assert ProcessGroup(1, 2).shard([3, 1, 2]) == [1]
