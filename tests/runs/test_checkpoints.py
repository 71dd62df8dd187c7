"""A kill at any moment leaves a whole checkpoint, and a run that goes on comes to the same bits."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.rlhf import files
from stages.rlhf.runs import checkpoints, signals
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.train import sft_trainer
from tests.conftest import ROOT, Killed, full_disk, naming
from tests.model_fixtures import differing
from tests.ppo import resumed_ppo


def save(folder: Path, step: int) -> None:
    checkpoints.save(folder, step, {"weight": torch.full((3,), float(step))}, {"step": step})


def loaded(folder: Path) -> int:
    found = checkpoints.load(folder)
    assert found is not None
    assert found.step == found.plain["step"]
    assert found.tensors["weight"].tolist() == [float(found.step)] * 3
    return found.step


def test_the_newest_is_loaded_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "none") is None
    for step in (3, 6, 9, 12):  # "12" sorts before "9"
        save(tmp_path, step)
        assert loaded(tmp_path) == step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-12", "step-9"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "lost"])
def test_a_damaged_one_is_named_and_passed_over(
    tmp_path: Path, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3)
    save(tmp_path, 6)
    path = tmp_path / "step-6" / file
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert loaded(tmp_path) == 3
    assert f"{tmp_path / 'step-6'}: " in capsys.readouterr().err


WATCHED: tuple[tuple[Any, str], ...] = (
    (checkpoints, "save_file"),
    (files, "sync"),
    (Path, "write_text"),
    (Path, "rename"),
    (shutil, "rmtree"),
)


def moments() -> list[Any]:
    """Every call by which a save writes, moves or removes, as counted in one that nobody kills."""
    calls: Counter[str] = Counter()

    def counted(name: str, inner: Any) -> Any:
        return lambda *given, **named: calls.update([name]) or inner(*given, **named)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        save(Path(folder), 3)
        for owner, name in WATCHED:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        save(Path(folder), 6)
    assert set(calls) == {name for _, name in WATCHED}, "a save does not call what is watched"
    return [
        pytest.param(owner, name, call, id=f"{name} {call}")
        for owner, name in WATCHED
        for call in range(1, calls[name] + 1)
    ]


@pytest.mark.parametrize(("owner", "name", "call"), moments())
def test_a_kill_during_a_save_leaves_one_that_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    save(tmp_path, 3)
    calls, inner = [], getattr(owner, name)

    def killed(*given: Any, **named: Any) -> Any:
        calls.append(0)
        if len(calls) == call:
            raise Killed
        return inner(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
        with pytest.raises(Killed):
            save(tmp_path, 6)
    assert loaded(tmp_path) in (3, 6)
    save(tmp_path, 6)
    assert loaded(tmp_path) == 6
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_is_named_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", full_disk)
        with pytest.raises(ValueError, match=naming("step-6", "No space left")):
            save(tmp_path, 6)
    assert loaded(tmp_path) == 3


# ---- PPO goes on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to if nothing ends it."""
    return resumed_ppo.everything(resumed_ppo.run(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("killed_at", [5, 2], ids=["after a checkpoint", "before any"])
def test_six_updates_are_three_a_kill_and_three(
    tmp_path: Path, whole: dict[str, Any], killed_at: int
) -> None:
    command = [sys.executable, "-m", "tests.ppo.resumed_ppo", str(tmp_path), str(killed_at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    kept = tmp_path / "kept" / "step-4"  # after one update of warm-up
    assert kept.is_dir() == (killed_at == 5)
    trainer = resumed_ppo.run(tmp_path, killed_at=2 if killed_at == 5 else None)
    assert differing(whole, resumed_ppo.everything(trainer)) == []
    assert [row["update"] for row in trainer.progress.updates] == list(range(7))


def test_without_a_value_model_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.ppo.resumed_ppo", str(folder), "5", "rloo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    again = resumed_ppo.run(folder, killed_at=2, advantage="rloo")
    whole = resumed_ppo.run(tmp_path / "whole", advantage="rloo")
    assert differing(resumed_ppo.everything(whole), resumed_ppo.everything(again)) == []
    assert [row["update"] for row in again.progress.updates] == list(range(1, 7))


def test_a_run_that_ended_is_not_run_again(tmp_path: Path, whole: dict[str, Any]) -> None:
    resumed_ppo.run(tmp_path)
    again = resumed_ppo.everything(resumed_ppo.run(tmp_path, killed_at=1))
    assert differing(whole, again) == []


def test_asked_to_end_ppo_saves_its_update_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    for step in (1, 2):  # the update of warm-up, and the first of the policy
        with monkeypatch.context() as patched:
            patched.setattr(signals, "stop_requested", lambda: True)
            with pytest.raises(Interrupted, match=naming(f"step {step}", tmp_path)):
                resumed_ppo.run(tmp_path)
    again = resumed_ppo.everything(resumed_ppo.run(tmp_path))
    assert differing(whole, again) == []


def two(folder: Path, *killed_at: str) -> int:
    """The run as two processes; the exit code of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.ppo.resumed_ppo", str(folder), *killed_at]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    return done.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_go_on_as_two(tmp_path: Path) -> None:
    assert two(tmp_path / "whole") == 0
    assert two(tmp_path / "cut", "5") != 0
    kept = tmp_path / "cut" / "kept"
    assert (kept / "step-4").is_dir()
    assert not (kept / "step-7").is_dir()
    assert two(tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "result.safetensors") for name in ("whole", "cut"))
    assert len(whole) > 20
    assert differing(whole, cut) == []
    plain = [(tmp_path / name / "result.json").read_text() for name in ("whole", "cut")]
    assert plain[0] == plain[1]
    log = list(checkpoints.log_of(tmp_path / "cut"))
    assert [told["from"] for told in log if "from" in told] == [0, 4]


def refusing(number: int, folders: bool) -> Callable[[int], None]:
    """os.fsync of a file system that has none, of folders or of files."""
    inner = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        inner(handle)

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_fsync_of_folders_keeps_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number, folders=True))
    checkpoints.save(tmp_path / "x", 3, {"a": torch.ones(2)}, {"b": 1})
    found = checkpoints.load(tmp_path / "x")
    assert found is not None
    assert (found.step, found.tensors["a"].tolist(), found.plain) == (3, [1.0, 1.0], {"b": 1})


@pytest.mark.parametrize(("number", "folders"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_what_was_not_written_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folders: bool
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number, folders))
    with pytest.raises(ValueError, match=naming("no checkpoint", os.strerror(number))):
        checkpoints.save(tmp_path / "x", 3, {"a": torch.ones(2)}, {})
    assert checkpoints.load(tmp_path / "x") is None


class Beside(ProcessGroup):
    """One of two machines; the newest checkpoint of the other is of step 4."""

    def least(self, number: int) -> int:
        return min(number, 4)


def test_two_machines_resume_from_the_newest_that_both_have(tmp_path: Path) -> None:
    for step in (4, 7):
        checkpoints.save(tmp_path / "x", step, {"a": torch.full((1,), float(step))}, {})
    assert Checkpointer(tmp_path / "x").load().step == 7  # type: ignore[union-attr]
    found = Checkpointer(tmp_path / "x", Beside()).load()
    assert found is not None
    assert (found.step, found.tensors["a"].item()) == (4, 4.0)
    assert [line["from"] for line in checkpoints.log_of(tmp_path)] == [7, 4]


def test_a_checkpoint_that_another_machine_alone_has_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "x", 7, {}, {})
    with pytest.raises(ValueError, match=naming(tmp_path / "x", "step 4", "another machine")):
        Checkpointer(tmp_path / "x", Beside()).load()
    assert Checkpointer(tmp_path / "none", Beside()).load() is None


def test_sft_resumes_from_what_both_machines_have(tmp_path: Path) -> None:
    for step in (4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
        files.write_manifest(folder)
    assert sft_trainer.agreed(tmp_path, ProcessGroup()) == tmp_path / "checkpoint-6"
    assert sft_trainer.agreed(tmp_path, Beside()) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=naming("checkpoint-4", "another machine")):
        sft_trainer.agreed(tmp_path, Beside())
