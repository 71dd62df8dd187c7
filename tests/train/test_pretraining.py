"""Pretraining: every row once an epoch, padding never trained, and a model that learns."""

import math
import random
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from stages import base
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Pretraining
from stages.rlhf.precision import SDPA_FLOAT32
from stages.rlhf.records import SftRow, write_jsonl
from stages.rlhf.train import pretraining
from stages.rlhf.train.pretraining import (
    Example,
    Losses,
    batches,
    curriculum,
    labels_of,
    new_llama,
    pad,
    predicted,
    pretrain,
    steps_of,
)
from tests.conftest import naming
from tests.model_fixtures import ARCHITECTURE, IDS, random_ids, shipped
from tests.tokenizer_fixtures import tiny_tokenizer


def test_pad_by_hand() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert {t.device.type for t in pad([[5, 6, 7], [8]], 0, "meta")} == {"meta"}


def test_every_row_comes_once_an_epoch_beside_rows_of_like_length() -> None:
    rows = [Example(ids) for ids in random_ids(23, 1, 30, 300, 0)]
    stream = batches(rows, 5, random.Random(0))
    epochs = [[next(stream) for _ in range(5)] for _ in range(3)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == sorted(rows)
        lengths = [[len(row.ids) for row in batch] for batch in epoch]
        spans = sorted((min(one), max(one)) for one in lengths)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), spans
    assert epochs[0] != epochs[1]
    again = batches(rows, 5, random.Random(0))
    assert [next(again) for _ in range(5)] == epochs[0]


def test_pretraining_learns_and_leaves_the_model_frozen() -> None:
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    rows = [Example([1, *(3 + (start + i) % 20 for i in range(8)), 2]) for start in range(20)]
    settings = Pretraining(steps=40, batch_size=10, learning_rate=3e-2)
    losses, lessons = pretrain(model, rows, 0, settings, random.Random(0))
    assert len(losses) == len(lessons) == 40
    assert all(map(math.isnan, lessons))
    assert losses[-1] < 0.4 * losses[0], f"loss {losses[0]} at first, {losses[-1]} at last"
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_padding_is_never_trained() -> None:
    first = []
    for pad_id in (0, 7):
        torch.manual_seed(0)
        model = new_llama(ARCHITECTURE, IDS, max_length=40)
        settings = Pretraining(steps=1, batch_size=2, learning_rate=1e-2)
        rows = [Example([1, 9, 2]), Example([1, 5, 6, 8, 9, 2])]
        first += pretrain(model, rows, pad_id, settings, random.Random(0)).documents
    assert first[0] == first[1]


def test_no_documents_are_refused() -> None:
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    settings = Pretraining(steps=1, batch_size=2, learning_rate=1e-2)
    with pytest.raises(ValueError, match=naming("corpus")):
        pretrain(model, [], 0, settings, random.Random(0))


class Elsewhere(torch.nn.Module):
    """A model on another device than its batches are made on, as one on a GPU is."""

    device = torch.device("meta")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: set[torch.device] = set()

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen |= {value.device for value in inputs.values()}
        return SimpleNamespace(loss=self.weight.square().sum())


def test_batches_go_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Elsewhere()
    monkeypatch.setattr(pretraining, "products", lambda device, enabled: nullcontext())
    settings = Pretraining(steps=2, batch_size=2, learning_rate=1e-2)
    pretraining.pretrain(
        model, [Example([1, 5, 2]), Example([1, 2])], 0, settings, random.Random(0)
    )
    assert model.seen == {torch.device("meta")}


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_trains_the_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    moved: list[str] = []
    attention: list[str] = []

    def trained(model: Any, *given: Any) -> Losses:
        attention.append(model.config._attn_implementation)
        return Losses([1.0], [math.nan])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(base, "autocasts", lambda dtype: True)
    monkeypatch.setattr(base, "pretrain", trained)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda self, where: moved.append(where))
    tiny_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "reading.jsonl").write_text("")
    (tmp_path / "corpus.jsonl").write_text('{"text": "서울은 수도입니다."}\n', encoding="utf-8")
    base.make(shipped().model_copy(update={"model": "micro"}), tmp_path, tmp_path / "out", tmp_path)
    assert moved == ["cuda" if gpu else "cpu"]
    # its backward pass is slow in bfloat16 on a CPU alone
    assert attention == ["sdpa" if gpu else SDPA_FLOAT32]


def test_of_a_lesson_the_answer_alone_is_predicted() -> None:
    rows = [Example([5, 6, 7, 8], 2), Example([1, 9])]
    ids, mask = pad([row.ids for row in rows], 0)
    assert labels_of(rows, ids, mask).tolist() == [[-100, -100, 7, 8], [-100, 9, -100, -100]]
    assert predicted(rows) == 3


def test_lessons_follow_the_documents_list_by_list_beside_half_as_many() -> None:
    documents = [Example([1, n, 2]) for n in range(3, 13)]
    lessons = [[Example([4] * n, 1) for n in range(2, 7)], [Example([5] * n, 1) for n in (2, 3)]]
    settings = Pretraining(steps=3, batch_size=4, learning_rate=1e-2)
    steps = list(curriculum(documents, lessons, settings, random.Random(0)))
    assert len(steps) == steps_of(settings, lessons) == 3 + 2 + 1
    assert sorted(len(batch) for step in steps[:3] for batch in step) == [2, 4, 4]
    assert all(len(step[0]) == 2 for step in steps[3:])
    taught = [row for step in steps[3:] for row in step[1]]
    assert sorted(taught[:5]) == sorted(lessons[0])
    assert sorted(taught[5:]) == sorted(lessons[1])
    plain = curriculum(documents, (), settings, random.Random(0))
    assert list(plain) == steps[:3]


def test_lessons_teach_to_copy() -> None:
    """The answer is the question's third token, which no document says: loss before and after."""
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    rng = random.Random(0)
    asked = [[rng.randrange(3, 25) for _ in range(4)] for _ in range(400)]
    lessons = [[Example([*ids, ids[2], 2], 4) for ids in asked]]
    settings = Pretraining(steps=5, batch_size=10, learning_rate=1e-2)
    documents = [Example([1, 3, 2])] * 10
    losses = pretrain(model, documents, 0, settings, random.Random(0), lessons=lessons)
    assert all(map(math.isnan, losses.lessons[:5]))
    assert losses.lessons[-1] < 0.5 * losses.lessons[5], losses.lessons[5::5]


def test_lessons_with_one_passage_come_first_and_long_ones_are_left_out(tmp_path: Path) -> None:
    codec = Codec(tiny_tokenizer())
    rows = [
        SftRow(
            id=str(n), question="수도는?", passages=("서울은 수도입니다.",) * n, answer="서울 [1]"
        )
        for n in (3, 1, 2, 40)
    ]
    write_jsonl(tmp_path / "reading.jsonl", rows)
    lengths = {row.id: len(codec.prompt_ids(row.message)) for row in rows}
    longest = lengths["3"] + len(codec.response_ids("서울 [1]"))
    alone, among = base.read_lessons(tmp_path / "reading.jsonl", codec, longest)
    assert [row.first for row in alone] == [lengths["1"]]
    assert [row.first for row in among] == [lengths["3"], lengths["2"]]
    for row in alone + among:
        assert codec.text(row.ids[row.first :]) == "서울 [1]"


def test_the_loss_of_lessons_is_the_model_s() -> None:
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    rows = [Example([1, 9, 8, 7, 6, 2], 3), Example([1, 5, 2], 1), Example([1, 4, 4, 2], 3)]
    ids, mask = pad([row.ids for row in rows], 0)
    labels = labels_of(rows, ids, mask)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert pretraining.loss_of(model, rows, 0).item() == pytest.approx(expected.item(), rel=1e-5)
    whole = [Example(row.ids) for row in rows]
    labels = labels_of(whole, ids, mask)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert pretraining.loss_of(model, whole, 0).item() == expected.item()
