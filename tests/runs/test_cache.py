"""Work folders: the same run once, its result kept, and nothing changed behind its back."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.rlhf import files
from stages.rlhf.config.whole import load_params
from stages.rlhf.runs import cache, closure, provenance, signals
from stages.rlhf.runs.checkpoints import note
from stages.rlhf.runs.prune import prune
from stages.rlhf.runs.signals import Interrupted
from tests.conftest import naming, write_params
from tests.model_fixtures import ROOT

STAGE, CODE = "sft", Path("data/check/sft.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository: params.yaml, dvc.yaml, one file of code, one of input."""
    write_params(tmp_path)
    for name in ("stages", "rows"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "stages" / "sft.py").write_text("code = 1\n")
    (tmp_path / "rows" / "train.jsonl").write_text("{}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages: {sft: {deps: [rows], params: [seed, sft, 'models.${model}.sft']}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    return tmp_path


def stage() -> provenance.Stage:
    """The stage, its fingerprint written anew as stage check would."""
    CODE.parent.mkdir(parents=True, exist_ok=True)
    CODE.write_text(json.dumps(closure.code_hashes(STAGE, closure.ROOT)))
    return provenance.Stage(STAGE, load_params(), CODE, {"rows": Path("rows")})


OUTS = [Path("data/sft"), Path("metrics/runtime/sft.json")]


def writes(text: str, calls: list[str] | None = None) -> Callable[[Path], None]:
    """The work of a stage: a checkpoint, and then its outs."""

    def do(folder: Path) -> None:
        if calls is not None:
            calls.append(text)
        (folder / "checkpointer").mkdir(parents=True, exist_ok=True)
        (folder / "checkpointer" / "state").write_text("unfinished")
        for step in (0, 3):
            note(folder / "checkpointer", "from", step)
        shutil.rmtree(OUTS[0], ignore_errors=True)
        OUTS[0].mkdir(parents=True)
        OUTS[1].parent.mkdir(parents=True, exist_ok=True)
        (OUTS[0] / "model").write_text(text)
        OUTS[1].write_text(text)

    return do


def run_cached(do: Callable[[Path], None]) -> None:
    cache.run_cached(stage(), OUTS, do)


def found() -> tuple[str, str]:
    return (OUTS[0] / "model").read_text(), OUTS[1].read_text()


def folder() -> Path:
    return cache.folder_of(provenance.origin(stage()))


# ---- the same run, once


def test_a_result_is_kept_and_taken_again(place: Path) -> None:
    calls: list[str] = []
    run_cached(writes("first", calls))
    assert not (folder() / "checkpointer").exists(), "checkpoints are of no use after the end"
    for out in OUTS:  # as DVC does before it runs a stage
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    told = Path("metrics/runtime/runs/sft.json")
    first = json.loads(told.read_text())
    assert first["resumed_from_steps"] == {"checkpointer": [3]}
    assert first["started"] <= first["ended"]
    run_cached(writes("second", calls))
    assert (calls, found()) == (["first"], ("first", "first"))
    assert json.loads(told.read_text())["restored_from_cache"] is True
    assert json.loads((OUTS[0] / "run.json").read_text())["stage"] == STAGE


@pytest.mark.parametrize("harm", ["changed", "lost", "added"])
def test_a_damaged_result_is_named_and_made_again(
    place: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    run_cached(writes("first"))
    file = folder() / "done" / "0" / ("model" if harm != "added" else "more")
    file.unlink() if harm == "lost" else file.write_text("other")
    run_cached(writes("second"))
    assert found() == ("second", "second")
    assert "the stage runs again" in capsys.readouterr().err
    run_cached(writes("third"))
    assert found() == ("second", "second")


def test_a_full_disk_costs_the_copy_and_not_the_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_manifest", full)
        run_cached(writes("first"))
    assert found() == ("first", "first")
    assert "could not be kept: [Errno 28] No space left" in capsys.readouterr().err
    assert not list(folder().glob("done*"))
    run_cached(writes("second"))
    assert found() == ("second", "second")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache.fcntl, "flock", refused)
    with pytest.raises(ValueError, match=naming(folder(), os.strerror(number), "KOQA_WORK")):
        run_cached(writes("never"))
    assert not OUTS[0].exists()


def test_another_fault_of_a_lock_is_not_taken_for_that(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cache.fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run_cached(writes("never"))


def changes() -> dict[str, Callable[[Path], Any]]:
    """What makes other work of it."""
    return {
        "params": lambda at: write_params(at, **{"sft.weight_decay": 0.5}),
        "model": lambda at: write_params(at, **{"models.tiny.sft.epochs": 9}),
        "inputs": lambda at: (at / "rows" / "train.jsonl").write_text("[]\n"),
        "more inputs": lambda at: (at / "rows" / "test.jsonl").write_text("{}\n"),
        "code": lambda at: (at / "stages" / "sft.py").write_text("code = 2\n"),
    }


NAMES = {
    "params": "params sft",
    "model": "params models.${model}.sft",
    "inputs": "inputs rows",
    "more inputs": "inputs rows",
    "code": "code stages/sft.py",
}


@pytest.mark.parametrize("what", NAMES)
def test_other_params_inputs_or_code_are_other_work(place: Path, what: str) -> None:
    run_cached(writes("first"))
    before = folder()
    changes()[what](place)
    assert folder() != before
    run_cached(writes("second"))
    assert found() == ("second", "second")


@pytest.mark.parametrize("what", NAMES)
def test_what_changed_while_it_ran_is_named_and_the_stage_fails(place: Path, what: str) -> None:
    before = folder()

    def do(at: Path) -> None:
        writes("first")(at)
        changes()[what](place)

    name = NAMES[what].replace("$", r"\$").replace(".", r"\.")
    with pytest.raises(ValueError, match=f"^sft: changed while it ran: {name}; .*run it again"):
        run_cached(do)
    assert folder() != before
    assert (before / "done" / "0" / "model").read_text() == "first"


def test_what_a_stage_does_not_declare_may_change(place: Path) -> None:
    before = folder()
    write_params(place, **{"ppo.kl_coef": 0.7, "models.micro.sft.epochs": 9})
    (place / "stages" / "rm.py").write_text("code = 2\n")
    assert folder() == before


def test_the_place_counts_for_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.origin(stage())
    shutil.copytree(place, place.parent / "elsewhere")
    monkeypatch.chdir(place.parent / "elsewhere")
    monkeypatch.setattr(closure, "ROOT", Path.cwd())
    assert provenance.origin(stage()) == before


def test_a_missing_input_is_named(place: Path) -> None:
    with pytest.raises(ValueError, match=naming("rows/none.jsonl")):
        provenance.origin(replace(stage(), inputs={"rows": Path("rows/none.jsonl")}))


# ---- two processes


def _second(text: str) -> None:
    run_cached(writes(text))


def test_a_second_process_waits_and_takes_the_result(place: Path) -> None:
    fork = multiprocessing.get_context("fork")
    waits = fork.Process(target=_second, args=("second",))

    def do(at: Path) -> None:
        waits.start()
        time.sleep(1)
        assert waits.is_alive()
        writes("first")(at)

    run_cached(do)
    waits.join(20)
    assert waits.exitcode == 0
    assert found() == ("first", "first")


def test_a_lock_is_free_when_its_holder_is_killed(place: Path) -> None:
    at = folder()
    fork = multiprocessing.get_context("fork")
    held = fork.Event()

    def hold() -> None:
        with cache.locked(at):
            held.set()
            time.sleep(60)

    holder = fork.Process(target=hold)
    holder.start()
    assert held.wait(20)
    with pytest.raises(BlockingIOError), cache.locked(at, wait=False):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(20)
    with cache.locked(at, wait=False):
        pass


# ---- asked to end


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_ends_a_stage_whose_work_is_done(
    place: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def do(at: Path) -> None:
        os.kill(os.getpid(), number)
        assert signals.stop_requested()
        writes("first")(at)

    with pytest.raises(Interrupted, match=naming("interrupted", "sft")):
        run_cached(do)
    assert f"{number.name}: finishing and saving this step" in capsys.readouterr().err
    assert not signals.stop_requested()
    run_cached(writes("second"))
    assert found() == ("first", "first")


def test_a_second_signal_ends_it_at_once(place: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def do(at: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        run_cached(do)
    assert signal.getsignal(signal.SIGINT) is before


# ---- where they lie, and how they go


def test_work_lies_beside_the_repository_even_in_dvcs_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "x"
    copy.mkdir(parents=True)
    monkeypatch.delenv("KOQA_WORK")
    for where in (tmp_path, copy):
        monkeypatch.chdir(where)
        assert cache.root() == tmp_path / ".work"
    monkeypatch.setenv("KOQA_WORK", str(tmp_path / "elsewhere"))
    assert cache.root() == tmp_path / "elsewhere"


def test_pruning_takes_what_is_old_and_idle(place: Path) -> None:
    run_cached(writes("first"))
    one = folder()
    changes()["params"](place)
    run_cached(writes("second"))
    two = folder()
    changes()["code"](place)
    three = folder()
    now = time.time()
    for path in [one, *one.rglob("*")]:
        os.utime(path, (now - 3 * 86400, now - 3 * 86400))
    with cache.locked(three):
        assert list(prune(cache.root(), 2, now)) == [one]
        assert (one.exists(), two.exists()) == (False, True)
        assert list(prune(cache.root(), 0, now + 1)) == [two]
    assert three.is_dir()
    run_cached(writes("third"))
    assert found() == ("third", "third")


STAGES = set(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]) - {"check"}  # which makes them


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_has_a_fingerprint(name: str, tmp_path: Path) -> None:
    code = tmp_path / "code.json"
    code.write_text(json.dumps(closure.code_hashes(name)))
    params = load_params(ROOT / "params.yaml")
    made = provenance.origin(provenance.Stage(name, params, code, {}))
    assert made.params
    assert f"stages/{name}.py" in made.code
    assert len(made.fingerprint) == 64


def test_the_package_of_4_bit_weights_counts_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setattr(provenance, "version", lambda name: f"{name}'s")
    params = load_params(ROOT / "params.yaml")
    for dtype in ("mixed", "nf4"):
        name = params.model
        entry = params.models[name].model_copy(update={"dtype": dtype})
        given = params.model_copy(update={"models": {**params.models, name: entry}})
        monkeypatch.setattr(closure, "check_fingerprint", lambda *where: {})
        made = provenance.origin(provenance.Stage("rm", given, tmp_path / "code.json", {}))
        assert ("bitsandbytes" in made.packages) == (dtype == "nf4")
        assert "torch" in made.packages
