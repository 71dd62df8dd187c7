"""SFT: what is trained, in which order, and that the kept model is the epoch that was best."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import sft
from stages.rlhf.chat import Codec
from stages.rlhf.model.store import check_card, load_sft, load_tokenizer
from stages.rlhf.records import SftRow, write_jsonl
from stages.rlhf.train import sft_trainer
from tests.conftest import naming
from tests.model_fixtures import LORA
from tests.sft_fixtures import BEST, GROUPS, ROWS, micro, rank1, train, write_inputs
from tests.tokenizer_fixtures import tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


def test_labels_are_the_answer_and_its_eos() -> None:
    codec = Codec(tiny_tokenizer())
    for row, made in zip(ROWS, sft_trainer.encoded(ROWS, codec), strict=True):
        trained = [label for label in made["labels"] if label != -100]
        assert trained == codec.response_ids(row.answer)
        assert trained[-1] == codec.eos_id
        start = len(codec.prompt_ids(row.question))
        assert made["labels"][:start] == [-100] * start
        assert made["input_ids"][start:] == trained
        assert len(made["input_ids"]) == len(made["labels"])


def test_what_reaches_the_model_trains_each_answer_and_its_eos(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Any] = []
    compute_loss = sft_trainer.SFTTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            batches.append({key: value.clone() for key, value in inputs.items()})
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft_trainer.SFTTrainer, "compute_loss", watched)
    train(micro(), folder)
    codec = Codec(load_tokenizer(folder / "base"))
    expected = sorted((codec.prompt_ids(r.question), codec.response_ids(r.answer)) for r in ROWS)
    found = []
    for batch in batches:
        assert set(batch) >= {"input_ids", "labels"}
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            places = [i for i, label in enumerate(labels) if label != -100]
            start, end = places[0], places[-1] + 1
            assert places == list(range(start, end))
            assert ids[start:end] == labels[start:end]
            assert set(ids[end:]) <= {codec.pad_id}
            found.append((ids[:start], ids[start:end]))
        mask = batch["attention_mask"].bool()
        assert batch["labels"][~mask].eq(-100).all()
    assert sorted(found) == expected


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_best_epoch_is_what_is_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    said, ids = iter([3.0, 1.0, 2.0]), torch.tensor([[1, 9, 30, 7]])
    seen: list[torch.Tensor] = []

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.no_grad():
            seen.append(self.model.eval()(input_ids=ids).logits)
        return {"eval_loss": next(said)}

    monkeypatch.setattr(sft_trainer.SFTTrainer, "evaluate", evaluate)
    monkeypatch.setattr(sft_trainer.SFTTrainer, "train", logged(sft_trainer.SFTTrainer.train))
    params = micro(method=method, epochs=3, learning_rate=0.02)
    train(params, folder)
    roles = load_sft(folder / "base", folder / "sft", "float32", LORA)
    with torch.no_grad(), roles.use(roles.reference) as model:
        found = model(input_ids=ids).logits
    off = [(found - logits).abs().max().item() for logits in seen]
    assert off[1] < 1e-5, f"the saved model differs from epochs 1, 2, 3 by {off}"
    assert min(off[0], off[2]) > 1e-3, f"epochs are too alike to tell: {off}"


def logged(inner: Any) -> Any:
    """Trainer.train, with the line that a real evaluation leaves in the log."""

    def wrapped(self: Any, **given: Any) -> None:
        inner(self, **given)
        self.state.log_history.append({"eval_loss": 1.0})

    return wrapped


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trained_model_names_its_base_and_no_place(folder: Path, method: str) -> None:
    train(micro(method=method), folder)
    card = check_card(folder / "sft", {"base": folder / "base"})
    assert (card["kind"], card["method"]) == ("sft", method)
    for file in (folder / "sft").iterdir():
        assert str(folder).encode() not in file.read_bytes(), file.name


def test_the_best_ranked_answer_is_taken_and_of_equals_the_first() -> None:
    found = [row.demonstration() for row in GROUPS]
    assert [row.answer for row in found] == BEST
    assert [row.question for row in found] == [group.question for group in GROUPS]


def test_demonstrations_alone_do_not_read_the_groups(folder: Path) -> None:
    assert not (folder / "groups.jsonl").exists()
    figures = train(micro(), folder)
    assert set(figures) == {"loss", "eval_loss", "eos_rate", "exact"}
    with pytest.raises(ValueError, match=naming(folder / "groups.jsonl")):
        sft.phases(rank1(micro()), folder / "rows", folder / "groups.jsonl")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_rank1_goes_on_from_the_demonstrations(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    write_jsonl(folder / "groups.jsonl", GROUPS)
    codec, ids = Codec(tiny_tokenizer()), torch.tensor([[1, 9, 30, 7]])
    seen: list[tuple[torch.Tensor, torch.Tensor, list[Any], float]] = []
    inner = sft_trainer.SFTTrainer.train

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(input_ids=ids).logits
        return found

    def watched(self: Any, **given: Any) -> None:
        before = logits(self.model)
        inner(self, **given)
        rows = self.train_dataset["input_ids"]
        seen.append((before, logits(self.model), list(rows), self.args.num_train_epochs))

    monkeypatch.setattr(sft_trainer.SFTTrainer, "train", watched)
    params = rank1(micro(method=method, epochs=3, learning_rate=0.02), epochs=2)
    figures = train(params, folder)
    first, second = seen
    best = [
        codec.prompt_ids(group.question) + codec.response_ids(answer)
        for group, answer in zip(GROUPS, BEST, strict=True)
    ]
    assert (len(first[2]), first[3], second[2], second[3]) == (len(ROWS), 3, best, 2)
    assert (first[1] - first[0]).abs().max() > 1e-2
    assert torch.equal(second[0], first[1])
    assert (second[1] - second[0]).abs().max() > 1e-2
    roles = load_sft(folder / "base", folder / "sft", "float32", LORA)
    with roles.use(roles.reference) as model:
        assert (logits(model) - second[1]).abs().max() < 1e-5
    assert set(figures) == {
        *("loss", "eval_loss", "eos_rate", "exact", "demonstrations", "beats_demonstrations")
    }


@pytest.mark.parametrize(("after", "beats"), [(0.5, True), (2.0, False)])
def test_figures_say_whether_the_best_answers_helped(after: float, beats: bool) -> None:
    before, last = {"loss": 3.0, "eval_loss": 1.0}, {"loss": 1.0, "eval_loss": after}
    assert sft.losses([before]) == before
    assert sft.losses([before, last]) == {
        **last,
        "demonstrations": before,
        "beats_demonstrations": beats,
    }


@pytest.mark.parametrize("visible", [1, 2, 8])
def test_of_several_gpus_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: int
) -> None:
    for name, value in {
        "is_available": True,
        "device_count": visible,
        "set_device": None,
        "get_device_capability": (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    config = sft_trainer.trainer_config(micro(), tmp_path, sft_trainer.Phase(ROWS, 1, 0))
    assert config.device == torch.device("cuda:0")
    assert config.n_gpu == 1
    assert config.train_batch_size == config.eval_batch_size == 2  # rows of a micro-batch


def test_validation_rows_are_drawn_once_by_the_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    inner = sft.greedy_responses

    def watched(model: Any, codec: Any, questions: list[str], *given: Any) -> Any:
        asked.append(questions)
        return inner(model, codec, questions, *given)

    monkeypatch.setattr(sft, "greedy_responses", watched)
    many = [SftRow(id=f"m{i}", question=f"{i}번 도시는?", answer="부산입니다.") for i in range(9)]
    write_jsonl(folder / "rows" / "validation.jsonl", many)
    for seed in (0, 0, 1):
        train(micro().model_copy(update={"validation_rows": 4, "seed": seed}), folder)
        shutil.rmtree(folder / "work")
    questions = [row.question for row in many]
    assert asked[0] == asked[1] != asked[2]
    assert [len(part) for part in asked] == [4] * 3
    assert asked[0] == sorted(asked[0], key=questions.index)
    assert set(asked[0]) < set(questions)
