"""Base, SFT, reward members and answers go on after a kill, and come to the same bits."""

import errno
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import sft
from stages.rlhf import files
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Pretraining
from stages.rlhf.model import generation
from stages.rlhf.model.generation import draw_uniforms, generate_all
from stages.rlhf.records import write_jsonl
from stages.rlhf.reward.training import train
from stages.rlhf.runs import checkpoints, signals
from stages.rlhf.runs.checkpoints import SECONDS, Checkpointer
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.train import sft_trainer
from stages.rlhf.train.pretraining import new_llama, pretrain
from tests.model_fixtures import QUESTIONS, save_base, tiny_llama, tiny_tokenizer
from tests.reward.test_training import GROUPS, knobs, reward_model, settings
from tests.test_sft import GROUPS as RANKED
from tests.test_sft import ROWS, STRANGERS, micro, rank1
from tests.train.test_pretraining import ARCHITECTURE, IDS

CODEC = Codec(tiny_tokenizer())
Result = dict[str, Any]


class Killed(BaseException):
    """What ends the process: nothing may be written after it."""


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


def pretrained(folder: Path) -> Result:
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    rows = [[1, *(3 + (start + i) % 20 for i in range(8)), 2] for start in range(20)]
    steps = Pretraining(steps=6, batch_size=8, learning_rate=3e-2)
    losses = pretrain(
        model, rows, 0, steps, random.Random(0), checkpointer=Checkpointer(folder / "x")
    )
    return {"losses": losses, **model.state_dict()}


def members(folder: Path) -> Result:
    model = reward_model(folder / "models", members=2)
    now = settings(batch_size=2)
    rm = knobs(members=2, odin_coef=0.1)
    work = folder / "work"
    figures = train(model, GROUPS, GROUPS[:3], rm, now, CODEC, "tests", work=work)
    found: Result = {"figures": figures}
    for member in model.members:
        found |= checkpoints.add_prefix(f"{member.name}.", model.roles.state(member.name))
        found |= checkpoints.add_prefix(f"{member.name}.head.", member.head.state_dict())
    return found


def answers(folder: Path) -> Result:
    model = tiny_llama(len(CODEC.tokenizer))
    prompts = [CODEC.prompt_ids(question) for question in QUESTIONS]
    draws = draw_uniforms(len(prompts), 8, "tests")
    return {
        "ids": generate_all(model, prompts, CODEC, 8, 2, 1.0, draws, Checkpointer(folder / "x"))
    }


def tuned(method: str, both: bool) -> Callable[[Path], Result]:
    """SFT in three epochs of two steps, and in two more on ranked answers where `both`."""

    def run(folder: Path) -> Result:
        if not (folder / "base").exists():
            save_base(folder / "base")
            write_jsonl(folder / "rows" / "train.jsonl", ROWS)
            write_jsonl(folder / "rows" / "validation.jsonl", STRANGERS)
            write_jsonl(folder / "groups.jsonl", RANKED)
        params = micro(method=method, epochs=3, learning_rate=0.02)
        torch.manual_seed(0)
        places = [folder / name for name in ("base", "rows", "groups.jsonl", "sft", "work")]
        figures = sft.train(rank1(params, epochs=2) if both else params, *places)
        hashes = {name: files.file_hash(folder / "sft" / name) for name in
                  files.files_of(folder / "sft")}  # fmt: skip
        return {"figures": figures, **hashes}

    return run


RUNS: dict[str, tuple[Callable[[Path], Result], list[int]]] = {
    "pretraining": (pretrained, [2, 6]),
    "members": (members, [2, 3, 6, 7, 9]),  # 4 steps and 2 validations, then 2 and 2
    "answers": (answers, [2, 4]),
    "sft full": (tuned("full", both=False), [2, 3, 4, 6]),
    "sft lora": (tuned("lora", both=False), [2, 3]),
    "sft on both": (tuned("lora", both=True), [4, 7]),
}


def same(one: Result, two: Result) -> list[str]:
    """The keys under which two results differ."""

    def equal(a: Any, b: Any) -> bool:
        return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b

    return [key for key in one.keys() | two.keys() if not equal(one.get(key), two.get(key))]


def started_from(folder: Path) -> list[int]:
    """Every step that a loop began at, of all shelves below the folder, in order."""
    logs = sorted(folder.rglob(checkpoints.LOG))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [line["from"] for line in lines if "from" in line]


CASES = [(name, save) for name, (_, saves) in RUNS.items() for save in saves]


@pytest.mark.parametrize(("name", "save"), CASES)
def test_after_a_kill_it_comes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, save: int
) -> None:
    run = RUNS[name][0]
    whole = run(tmp_path / "whole")
    with killed_at(monkeypatch, save):
        run(tmp_path / "cut")
    assert same(whole, run(tmp_path / "cut")) == []
    assert max(started_from(tmp_path / "cut")) > 0
    assert max(started_from(tmp_path / "whole")) == 0


@pytest.mark.parametrize("name", RUNS)
def test_asked_to_end_it_saves_its_step_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = RUNS[name][0]
    whole = run(tmp_path / "whole")
    monkeypatch.setenv(SECONDS, "1000")  # nothing is saved but for the wish to end
    with monkeypatch.context() as patched:
        patched.setattr(signals, "asked", lambda: True)
        with pytest.raises(Interrupted, match=r"interrupted after step [12] .*goes on from there"):
            run(tmp_path / "cut")
    assert same(whole, run(tmp_path / "cut")) == []
    assert max(started_from(tmp_path / "cut")) in (1, 2)


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tuned("lora", both=False)
    whole = run(tmp_path / "whole")
    with killed_at(monkeypatch, 4):
        run(tmp_path / "cut")
    kept = tmp_path / "cut" / "work" / "phase0"
    assert sorted(p.name for p in kept.glob("checkpoint-*")) == [
        f"checkpoint-{i}" for i in (2, 3, 4)
    ]
    with (kept / "checkpoint-3" / "optimizer.pt").open("r+b") as file:
        file.write(b"not what it was")
    assert same(whole, run(tmp_path / "cut")) == []
    told = capsys.readouterr().err
    assert "checkpoint-4: damaged" in told  # not sealed yet
    assert "checkpoint-3: optimizer.pt does not match manifest.json" in told
    assert started_from(tmp_path / "cut") == [0, 2]


def test_a_full_disk_ends_sft_in_a_sentence_and_costs_no_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tuned("lora", both=False)
    whole = run(tmp_path / "whole")
    saves: list[int] = []
    inner = torch.save

    def full(*given: Any, **named: Any) -> None:
        saves.append(0)
        if len(saves) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(ValueError, match=r"phase0: no checkpoint could be written: .*No space"):
            run(tmp_path / "cut")
    assert same(whole, run(tmp_path / "cut")) == []
    assert max(started_from(tmp_path / "cut")) > 0
