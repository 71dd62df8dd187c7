"""Several processes come to what one comes to, in every loop; and what happens when one ends."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.rlhf.runs import checkpoints, sharding, signals
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.runtime import PROCESSES, processes
from tests.conftest import ROOT, naming
from tests.model_fixtures import differing
from tests.runs.loops import RUNS
from tests.runs.several import work

TOLERANCE = 1e-5
Found = tuple[dict[str, Any], dict[str, torch.Tensor]]


def several(
    count: int, loop: str, folder: Path, *more: str, shard: str = "0"
) -> subprocess.CompletedProcess[str]:
    """So many processes at a loop, a checkpoint at every step."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--shutdown-timeout=120"]  # as `parallel.launch`: until one has missed the other
    command += [f"--nproc_per_node={count}", "-m", "tests.runs.several", loop, str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", checkpoints.SECONDS: "0"}
    environment[sharding.SHARD] = shard
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def read(folder: Path, rank: int) -> Found:
    plain = json.loads((folder / f"{rank}.json").read_text())
    return plain, load_file(folder / f"{rank}.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What one process comes to."""

    @cache
    def made(loop: str) -> Found:
        plain, tensors = work(loop, tmp_path_factory.mktemp("one"), SINGLE_PROCESS)
        return json.loads(json.dumps(plain)), tensors

    return made


def flat(plain: Any, name: str = "") -> dict[str, Any]:
    """Numbers and strings of nested mappings and lists, by path."""
    if isinstance(plain, dict):
        return {k: v for key, one in plain.items() for k, v in flat(one, f"{name}.{key}").items()}
    if isinstance(plain, list):
        return {k: v for i, one in enumerate(plain) for k, v in flat(one, f"{name}.{i}").items()}
    return {name: plain}


QUICK = ("pretraining", "members", "sft lora", "ppo")  # one of each kind; the others are slow
FOUR = [loop for loop in RUNS if loop != "members"]  # whose steps have two rows


@pytest.mark.parametrize(
    ("count", "loop"),
    [(2, loop) for loop in QUICK]
    + [pytest.param(2, loop, marks=pytest.mark.slow) for loop in RUNS if loop not in QUICK]
    + [pytest.param(4, loop, marks=pytest.mark.slow) for loop in FOUR],
)
def test_several_come_to_what_one_comes_to(
    tmp_path: Path, one: Callable[[str], Found], loop: str, count: int
) -> None:
    done = several(count, loop, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [read(tmp_path, rank) for rank in range(count)]
    for plain, tensors in found[1:]:
        assert plain == found[0][0]
        assert differing(tensors, found[0][1]) == []
    assert_close(found[0], one(loop))


SHARDABLE = [loop for loop in RUNS if loop not in ("pretraining", "sft full")]


@pytest.mark.parametrize(
    ("count", "loop"),
    [(2, "ppo")]
    + [pytest.param(2, loop, marks=pytest.mark.slow) for loop in ("answers", "members", "sft lora")]
    + [pytest.param(4, loop, marks=pytest.mark.slow) for loop in SHARDABLE if loop in FOUR],
)
def test_a_backbone_spread_over_several_comes_to_what_a_whole_one_comes_to(
    tmp_path: Path, one: Callable[[str], Found], loop: str, count: int
) -> None:
    """Also where the processes have other numbers of micro-batches and of tokens to decode."""
    done = several(count, loop, tmp_path, shard="1")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [read(tmp_path, rank) for rank in range(count)]
    for plain, tensors in found[1:]:
        assert plain == found[0][0]
        assert differing(tensors, found[0][1]) == []
    assert_close(found[0], one(loop))


def assert_close(found: Found, expected: Found) -> None:
    assert flat(found[0]) == pytest.approx(flat(expected[0]), abs=TOLERANCE, rel=TOLERANCE)
    assert found[1].keys() == expected[1].keys()
    for key, tensor in expected[1].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=TOLERANCE, atol=TOLERANCE, msg=key)


@pytest.mark.parametrize(
    ("loop", "then"),
    [("pretraining", 1), ("sft lora", 2)]
    + [pytest.param(loop, 1, marks=pytest.mark.slow) for loop in ("members", "sft on both")],
)
def test_one_of_two_is_killed_and_any_number_goes_on(
    tmp_path: Path, one: Callable[[str], Found], loop: str, then: int
) -> None:
    """At the fourth step, of SFT in the second epoch, whose order is another than the first's."""
    done = several(2, loop, tmp_path, "4")
    assert done.returncode != 0
    assert re.search(naming("process 0 of 2 lost another one", "resumes"), done.stderr)
    before = [line for line in logged(tmp_path) if "saved" in line]
    assert before
    done = several(then, loop, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(line["from"] for line in logged(tmp_path) if "from" in line) > 0
    assert_close(read(tmp_path, 0), one(loop))


def logged(folder: Path) -> list[dict[str, Any]]:
    """Lines of all logs of checkpoints."""
    return [
        line for log in folder.rglob(checkpoints.LOG) for line in checkpoints.log_of(log.parent)
    ]


def test_what_one_has_begun_two_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Callable[[str], Found]
) -> None:
    monkeypatch.setenv(checkpoints.SECONDS, "0")
    with monkeypatch.context() as patched:
        patched.setattr(signals, "stop_requested", lambda: True)
        with pytest.raises(Interrupted, match="step 1"):
            work("pretraining", tmp_path, SINGLE_PROCESS)
    done = several(2, "pretraining", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["from"] for line in logged(tmp_path) if "from" in line] == [0, 1]
    assert_close(read(tmp_path, 0), one("pretraining"))


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_processes_is_a_number(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(PROCESSES, given)
    with pytest.raises(ValueError, match=naming(PROCESSES, repr(given), "1 or more")):
        processes()


def test_more_processes_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("rm.batch_size", 8, 9, "at most 8")):
        ProcessGroup(0, 9).check_rows(8, "rm.batch_size")
    ProcessGroup(0, 8).check_rows(8, "rm.batch_size")


def test_processes_that_see_other_data_are_refused(tmp_path: Path) -> None:
    script = """
import sys
from stages.rlhf.runs.process_group import ProcessGroup
group = ProcessGroup.init()
try:
    group.check_same(("ab" if group.rank else "cd") * 8, "the fingerprint of inputs is")
except ValueError as error:
    print(error)
group.check_same("ab" * 8, "the same is refused")
group.destroy()
"""
    (tmp_path / "differ.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "differ.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        naming("process 1 of 2", "the fingerprint of inputs is", "ab" * 8, "cd" * 8), done.stdout
    )
