"""Base, SFT, reward members and answers go on after a kill, and come to the same bits."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.rlhf.decoding import generation
from stages.rlhf.files import MANIFEST, file_hash
from stages.rlhf.runs import checkpoints, signals
from stages.rlhf.runs.checkpoints import SECONDS
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.train import sft_trainer
from tests.conftest import Killed, full_disk, naming
from tests.model_fixtures import differing
from tests.runs.loops import RUNS, Result, answers
from tests.tokenizer_fixtures import QUESTIONS


@pytest.fixture(autouse=True)
def _saves_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS, "0")


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, save: int) -> Iterator[None]:
    """The process ends just before it begins its save number `save`."""
    calls: list[int] = []
    keep, seal = checkpoints.save, sft_trainer.ManifestCallback.on_save

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(0)
            if len(calls) == save:
                raise Killed
            return inner(*given, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", counted(keep))
        patched.setattr(sft_trainer.ManifestCallback, "on_save", counted(seal))
        with pytest.raises(Killed):
            yield


def started_from(folder: Path) -> list[int]:
    """Every step that a loop began at, of all shelves below the folder, in order."""
    logs = sorted(folder.rglob(checkpoints.LOG))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [line["from"] for line in lines if "from" in line]


SAVES = {
    "pretraining": [2, 6],
    "members": [2, 3, 6, 7, 9],  # 4 steps and 2 validations, then 2 and 2
    "answers": [2, 4],
    "sft full": [2, 3, 4, 6],
    "sft lora": [2, 3],
    "sft on both": [4, 7],
}
CASES = [(name, save) for name, saves in SAVES.items() for save in saves]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """What each run comes to if nothing ends it."""

    @cache
    def made(name: str) -> Result:
        folder = tmp_path_factory.mktemp("whole")
        found = RUNS[name](folder)
        assert max(started_from(folder)) == 0
        return found

    return made


@pytest.mark.parametrize(("name", "save"), CASES)
def test_after_a_kill_it_comes_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Result],
    name: str,
    save: int,
) -> None:
    run = RUNS[name]
    with killed_at(monkeypatch, save):
        run(tmp_path)
    assert differing(whole(name), run(tmp_path)) == []
    assert max(started_from(tmp_path)) > 0


@pytest.mark.parametrize("name", RUNS)
def test_asked_to_end_it_saves_its_step_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Result], name: str
) -> None:
    run, expected = RUNS[name], whole(name)
    monkeypatch.setenv(SECONDS, "1000")  # nothing is saved but for the wish to end
    with monkeypatch.context() as patched:
        patched.setattr(signals, "stop_requested", lambda: True)
        with pytest.raises(Interrupted, match=r"step [12]\b"):
            run(tmp_path)
    assert differing(expected, run(tmp_path)) == []
    assert max(started_from(tmp_path)) in (1, 2)


def test_answers_that_were_kept_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(monkeypatch, 3):
        answers(tmp_path)
    made: list[int] = []
    inner = generation.generate

    def counted(model: Any, prompts: list[list[int]], *given: Any) -> list[list[int]]:
        made.append(len(prompts))
        return inner(model, prompts, *given)

    monkeypatch.setattr(generation, "generate", counted)
    answers(tmp_path)
    assert sum(made) == len(QUESTIONS) - 4  # two batches of two were saved


def test_sft_passes_over_what_is_damaged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Result],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RUNS["sft lora"]
    with killed_at(monkeypatch, 4):
        run(tmp_path)
    kept = tmp_path / "work" / "phase0"
    assert sorted(p.name for p in kept.glob("checkpoint-*")) == [
        f"checkpoint-{i}" for i in (2, 3, 4)
    ]
    with (kept / "checkpoint-3" / "optimizer.pt").open("r+b") as file:
        file.write(b"not what it was")
    assert differing(whole("sft lora"), run(tmp_path)) == []
    told = capsys.readouterr().err
    assert re.search(naming("checkpoint-4"), told)  # has no manifest yet
    assert re.search(naming("checkpoint-3", "optimizer.pt", "manifest.json"), told)
    assert started_from(tmp_path) == [0, 2]


@pytest.mark.parametrize(("method", "save"), [("lora", 4), ("full", 6)])  # epochs 2 and 3
def test_sft_goes_on_in_a_folder_that_was_moved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Result],
    method: str,
    save: int,
) -> None:
    run = RUNS[f"sft {method}"]
    (tmp_path / "here").mkdir()
    with killed_at(monkeypatch, save):
        run(tmp_path / "here")
    before = (tmp_path / "here" / "work" / "phase0").iterdir()
    sealed = sorted(path.name for path in before)[:-1]  # the last has no manifest yet
    (tmp_path / "here").rename(tmp_path / "there")
    found = sft_trainer.newest(tmp_path / "there" / "work" / "phase0")
    assert found == tmp_path / "there" / "work" / "phase0" / sealed[-1]
    assert sorted(path.name for path in found.parent.iterdir()) == sealed
    assert differing(whole(f"sft {method}"), run(tmp_path / "there")) == []
    assert started_from(tmp_path / "there") == [0, save - 1]
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("best", [None, Path("there/checkpoint-2")])
def test_the_best_epoch_that_trainer_loads_at_the_end_is_the_one_found(best: Path | None) -> None:
    """Trainer forgets it where the path that it noted is gone."""
    state = SimpleNamespace(max_steps=6, global_step=4, best_model_checkpoint="gone/checkpoint-2")
    sft_trainer.ManifestCallback(checkpoints.Timer(), best).on_train_begin(None, state, None)
    assert state.best_model_checkpoint == (str(best) if best else None)


def test_a_copy_of_a_run_reads_nothing_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Result]
) -> None:
    run = RUNS["sft lora"]
    (tmp_path / "first").mkdir()
    with killed_at(monkeypatch, 4):
        run(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    for file in (tmp_path / "first" / "work").rglob("adapter_model.safetensors"):
        file.write_bytes(b"damaged since")
    assert differing(whole("sft lora"), run(tmp_path / "second")) == []


def test_an_intact_checkpoint_whose_best_epoch_is_lost_is_set_aside_and_never_deleted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Result],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RUNS["sft lora"]
    with killed_at(monkeypatch, 6):
        run(tmp_path)
    work = tmp_path / "work" / "phase0"
    best = sft_trainer.best_of(work / "checkpoint-5")
    assert best == work / "checkpoint-4"
    shutil.rmtree(best)
    sealed = file_hash(work / "checkpoint-5" / MANIFEST)
    assert sft_trainer.newest(work) is None
    assert [path.name for path in work.glob("*checkpoint*")] == ["unused-checkpoint-5"]
    assert file_hash(work / "unused-checkpoint-5" / MANIFEST) == sealed
    assert re.search(naming("checkpoint-5", "best epoch", best), capsys.readouterr().err)
    assert differing(whole("sft lora"), run(tmp_path)) == []
    assert file_hash(work / "unused-checkpoint-5" / MANIFEST) == sealed


def test_a_full_disk_ends_sft_in_a_sentence_and_costs_no_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Result]
) -> None:
    run = RUNS["sft lora"]
    expected = whole("sft lora")
    saves: list[int] = []
    inner = torch.save

    def full(*given: Any, **named: Any) -> None:
        saves.append(0)
        if len(saves) > 6:
            full_disk()
        inner(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(ValueError, match=naming("phase0", "No space left")):
            run(tmp_path)
    assert differing(expected, run(tmp_path)) == []
    assert max(started_from(tmp_path)) > 0
