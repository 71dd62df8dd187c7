"""Pretraining: every row once an epoch, padding never trained, and a model that learns."""

import random
from itertools import pairwise

import pytest
import torch

from stages.rlhf.config.models import Pretraining
from stages.rlhf.train.pretraining import batches, new_llama, pad, pretrain
from tests.conftest import naming
from tests.model_fixtures import ARCHITECTURE, IDS, random_ids


def test_pad_by_hand() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]


def test_every_row_comes_once_an_epoch_beside_rows_of_like_length() -> None:
    rows = random_ids(23, 1, 30, 300, 0)
    stream = batches(rows, 5, random.Random(0))
    epochs = [[next(stream) for _ in range(5)] for _ in range(3)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == sorted(rows)
        spans = sorted((min(map(len, b)), max(map(len, b))) for b in epoch)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), spans
    assert epochs[0] != epochs[1]
    again = batches(rows, 5, random.Random(0))
    assert [next(again) for _ in range(5)] == epochs[0]


def test_pretraining_learns_and_leaves_the_model_frozen() -> None:
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    rows = [[1, *(3 + (start + i) % 20 for i in range(8)), 2] for start in range(20)]
    settings = Pretraining(steps=40, batch_size=10, learning_rate=3e-2)
    losses = pretrain(model, rows, 0, settings, random.Random(0))
    assert len(losses) == 40
    assert losses[-1] < 0.4 * losses[0], f"loss {losses[0]} at first, {losses[-1]} at last"
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_padding_is_never_trained() -> None:
    first = []
    for pad_id in (0, 7):
        torch.manual_seed(0)
        model = new_llama(ARCHITECTURE, IDS, max_length=40)
        settings = Pretraining(steps=1, batch_size=2, learning_rate=1e-2)
        first += pretrain(
            model, [[1, 9, 2], [1, 5, 6, 8, 9, 2]], pad_id, settings, random.Random(0)
        )
    assert first[0] == first[1]


def test_no_documents_are_refused() -> None:
    model = new_llama(ARCHITECTURE, IDS, max_length=40)
    settings = Pretraining(steps=1, batch_size=2, learning_rate=1e-2)
    with pytest.raises(ValueError, match=naming("corpus")):
        pretrain(model, [], 0, settings, random.Random(0))
