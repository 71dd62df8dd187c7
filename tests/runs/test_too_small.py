"""A GPU too small for a stage: the plan's sentence before anything loads, or weights in shares."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stages import sft
from stages.rlhf.runs import parallel
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runs.sharding import SHARD
from stages.rlhf.runtime import PROCESSES
from tests.conftest import ROOT, naming, write_fingerprint, write_params

SENTENCE = "sft needs 9.0 GiB, but 1.0 are available"
CARD = """
import torch
from types import SimpleNamespace
torch.cuda.is_available = lambda: True
torch.cuda.get_device_properties = lambda device: SimpleNamespace(total_memory=2**29)
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, and none of the variables that say otherwise."""
    for name in (SHARD, parallel.PLAN, parallel.TORCHRUN, "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words with which the plan is asked, which finds that a card is too small."""
    found: list[list[str]] = []
    answer(monkeypatch, parallel.DOES_NOT_FIT, f"{SENTENCE}\n", found)
    return found


def answer(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str, asked: list[list[str]] | None = None
) -> None:
    """Let the plan end like this."""

    def run(command: list[str], **more: Any) -> Any:
        if asked is not None:
            asked.append(command[command.index("plan") + 1 :])
        return subprocess.CompletedProcess(command, status, said, "")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_stage_ends_with_the_plans_sentence_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own command, with a plan that sees a card of half a GiB; there is no model at all."""
    write_params(tmp_path, model="micro")
    write_fingerprint(tmp_path, "sft")
    for name in ("base/config.json", "groups.jsonl", "rows/train.jsonl", "rows/validation.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CARD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    monkeypatch.chdir(tmp_path)
    words = ["--code", "data/check/sft.json", "--base", "base", "--groups", "groups.jsonl"]
    words += ["--rows", "rows", "--out", "sft", "--metrics", "metrics/sft.json"]
    done = CliRunner().invoke(sft.main, words)
    assert done.exit_code == 1, done.output
    assert done.output.startswith("Error: sft needs 1.0 GiB, but 0.5 are available; most of")
    assert done.output.endswith("; KOQA_PLAN=0 starts it all the same\n")


def test_the_plan_is_asked_for_the_cards_of_this_machine(asked: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=naming(SENTENCE, "KOQA_PLAN=0")):
        parallel.must_shard("sft", 4)
    assert asked == [["--stage", "sft", "--processes", "4"]]


def test_who_never_shards_is_asked_for_whole_weights(
    monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]
) -> None:
    monkeypatch.setenv(SHARD, "0")
    with pytest.raises(ValueError, match=SENTENCE):
        parallel.must_shard("sft", 4)
    assert asked == [["--stage", "sft", "--processes", "4", "--no-shard"]]


def test_without_a_gpu_or_against_the_plan_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        assert not parallel.must_shard("sft", 4)
    monkeypatch.setenv(parallel.PLAN, "0")
    assert not parallel.must_shard("sft", 4)
    assert asked == []


@pytest.mark.parametrize(
    ("status", "said", "shards"),
    [(0, "whole\n", False), (0, "shard\n", True), (1, "", False), (2, "", False)],
)
def test_where_the_plan_cannot_tell_a_stage_starts(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str, shards: bool
) -> None:
    answer(monkeypatch, status, said)
    assert parallel.must_shard("sft", 4) is shards


@pytest.mark.parametrize(
    ("count", "rank", "launched"),
    [(4, None, [("stages.sft", 4, True)]), (1, None, []), (4, "0", [])],
)
def test_the_process_that_was_started_asks_and_its_own_do_not(
    monkeypatch: pytest.MonkeyPatch, count: int, rank: str | None, launched: list[Any]
) -> None:
    started, made, planned = [], [], []
    monkeypatch.setenv(PROCESSES, str(count))
    if rank:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(parallel, "must_shard", lambda *given: not planned.append(given))
    monkeypatch.setattr(parallel, "launch", lambda *given: started.append(given))
    monkeypatch.setattr(parallel, "run_cached", lambda stage, outs, do: do(Path("ab")))
    monkeypatch.setattr(ProcessGroup, "init", ProcessGroup)
    stage: Any = SimpleNamespace(name="sft")
    parallel.run_parallel(stage, [], lambda work, group: made.append(work))
    assert started == launched
    assert planned == ([] if rank else [("sft", count)])
    assert made == ([] if launched else [Path("ab")])


@pytest.mark.parametrize(
    ("shard", "given", "seen"), [(True, None, "1"), (True, "0", "0"), (False, None, None)]
)
def test_processes_are_started_with_what_the_plan_found(
    monkeypatch: pytest.MonkeyPatch, shard: bool, given: str | None, seen: str | None
) -> None:
    environments = []

    class Agent:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **more: Any) -> None:
            environments.append(env)

        def __enter__(self) -> "Agent":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Agent)
    if given:
        monkeypatch.setenv(SHARD, given)
    parallel.launch("stages.sft", 2, shard)
    assert [env.get(SHARD) for env in environments] == [seen]
