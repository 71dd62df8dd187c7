"""SFT: what is trained, and that the kept model is the epoch that was best."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages import sft
from stages.rlhf.chat import Codec
from stages.rlhf.config import Params
from stages.rlhf.models import check_card, load_sft, load_tokenizer
from stages.rlhf.records import SftRow, write_jsonl
from tests.model_fixtures import (
    LORA,
    QUESTIONS,
    SENTENCES,
    save_base,
    shipped,
    tiny_tokenizer,
)

ROWS = [
    SftRow(id=str(i), question=question, answer=SENTENCES[i % 4])
    for i, question in enumerate(QUESTIONS)
]
STRANGERS = [
    SftRow(id="v0", question="대구는?", answer="부산입니다."),
    SftRow(id="v1", question="대전은?", answer="인천입니다."),
]


def micro(**changed: Any) -> Params:
    """params.yaml with model micro and other SFT settings."""
    entry = shipped().models["micro"]
    settings = entry.sft.model_copy(
        update={"epochs": 1, "batch_size": 4, "micro_batch_size": 2, **changed}
    )
    entry = entry.model_copy(update={"lora": LORA, "sft": settings})
    return shipped().model_copy(update={"model": "micro", "models": {"micro": entry}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_base(tmp_path / "base")
    write_jsonl(tmp_path / "rows" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "rows" / "validation.jsonl", STRANGERS)
    return tmp_path


def test_labels_are_the_answer_and_its_eos() -> None:
    codec = Codec(tiny_tokenizer())
    for row, made in zip(ROWS, sft.encoded(ROWS, codec), strict=True):
        trained = [label for label in made["labels"] if label != -100]
        assert trained == codec.answer_ids(row.answer)
        assert trained[-1] == codec.eos_id
        start = len(codec.prompt_ids(row.question))
        assert made["labels"][:start] == [-100] * start
        assert made["input_ids"][start:] == trained
        assert len(made["input_ids"]) == len(made["labels"])


def test_what_reaches_the_model_trains_each_answer_and_its_eos(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Any] = []
    compute_loss = sft.SFTTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            batches.append({key: value.clone() for key, value in inputs.items()})
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.SFTTrainer, "compute_loss", watched)
    sft.train(micro(), folder / "base", folder / "rows", folder / "sft")
    codec = Codec(load_tokenizer(folder / "base"))
    expected = sorted((codec.prompt_ids(r.question), codec.answer_ids(r.answer)) for r in ROWS)
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

    monkeypatch.setattr(sft.SFTTrainer, "evaluate", evaluate)
    monkeypatch.setattr(sft.SFTTrainer, "train", logged(sft.SFTTrainer.train))
    params = micro(method=method, epochs=3, learning_rate=0.02)
    sft.train(params, folder / "base", folder / "rows", folder / "sft")
    roles = load_sft(folder / "base", folder / "sft", "float32", LORA)
    with torch.no_grad(), roles.use(roles.reference) as model:
        found = model(input_ids=ids).logits
    off = [(found - logits).abs().max().item() for logits in seen]
    assert off[1] < 1e-5, f"the saved model differs from epochs 1, 2, 3 by {off}"
    assert min(off[0], off[2]) > 1e-3, f"epochs are too alike to tell: {off}"


def logged(train: Any) -> Any:
    """Trainer.train, with the line that a real evaluation leaves in the log."""

    def wrapped(self: Any) -> None:
        train(self)
        self.state.log_history.append({"eval_loss": 1.0})

    return wrapped


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trained_model_names_its_base_and_no_place(folder: Path, method: str) -> None:
    sft.train(micro(method=method), folder / "base", folder / "rows", folder / "sft")
    card = check_card(folder / "sft", {"base": folder / "base"})
    assert (card["kind"], card["method"]) == ("sft", method)
    for file in (folder / "sft").iterdir():
        assert str(folder).encode() not in file.read_bytes(), file.name
