"""The order of SFT's rows: random batches sorted by length, the same when a run is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_causal_lm, load_tokenizer
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.train import sft_trainer
from stages.rlhf.train.sampling import ShardCollator, SortedBatches
from stages.rlhf.train.sft_trainer import Phase, encoded, fit
from tests.model_fixtures import LORA, save_base
from tests.sft_fixtures import ROWS, STRANGERS, micro

LENGTHS = [5, 3, 9, 1, 7, 2, 8, 6, 4, 3, 5]


def test_each_batch_is_random_and_its_rows_go_by_length() -> None:
    sampler = SortedBatches(LENGTHS, 4, seed=3)
    sampler.set_epoch(2)
    order = list(sampler)
    assert len(sampler) == len(order) == len(LENGTHS)
    shuffled = torch.randperm(11, generator=torch.Generator().manual_seed(5)).tolist()
    for start in (0, 4, 8):
        batch = order[start : start + 4]
        assert sorted(batch) == sorted(shuffled[start : start + 4])
        lengths = [LENGTHS[i] for i in batch]
        assert lengths == sorted(lengths)


def test_an_epochs_order_is_of_its_number_and_the_seed() -> None:
    one, other = SortedBatches(LENGTHS, 4, seed=3), SortedBatches(LENGTHS, 4, seed=4)
    first = list(one)
    assert list(one) == first
    assert list(other) != first
    one.set_epoch(1)
    assert list(one) == list(other)


def train(folder: Path, work: str) -> tuple[list[list[int]], dict[str, Any]]:
    """Two epochs of steps of four rows, two at once; lengths by micro-batch, and the weights."""
    params = micro(epochs=2, method="lora")
    codec = Codec(load_tokenizer(folder / "base"))
    torch.manual_seed(0)
    roles = Roles(load_causal_lm(folder / "base", "float32"), LORA)
    roles.add("default")
    roles.model.set_adapter("default")
    seen: list[list[int]] = []

    def note(module: Any, args: Any, named: dict[str, Any]) -> None:
        if roles.model.training:
            seen.append(named["attention_mask"].sum(-1).tolist())

    roles.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        held = encoded(STRANGERS, codec)
        fit(roles.model, codec, params, Phase(ROWS, 2, seed=1), held, folder / work)
    except Interrupted:
        pass
    return seen, roles.state("default")


def test_steps_are_of_sorted_rows_and_a_resumed_run_takes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base(tmp_path / "base")
    seen, weights = train(tmp_path, "whole")
    per_epoch = -(-len(ROWS) // 4) * 2
    assert len(seen) == 2 * per_epoch
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert [*one, *other] == sorted([*one, *other])

    monkeypatch.setattr(sft_trainer.signals, "stop_requested", lambda: True)
    before, _ = train(tmp_path, "cut")
    assert 0 < len(before) < per_epoch
    monkeypatch.undo()
    after, resumed = train(tmp_path, "cut")
    assert [*before, *after] == seen
    assert all(resumed[name].equal(weights[name]) for name in weights)


def test_processes_share_a_micro_batch() -> None:
    rows = [{"input_ids": [i, i], "labels": [-100, i]} for i in range(5)]
    shards = [ShardCollator(list, ProcessGroup(rank, 2))(rows) for rank in (0, 1)]
    assert shards == [rows[0::2], rows[1::2]]


def test_a_process_without_a_row_learns_nothing_from_anothers() -> None:
    rows = [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}]
    assert ShardCollator(list, ProcessGroup(0, 3))(rows) == rows
    assert ShardCollator(list, ProcessGroup(2, 3))(rows) == [
        {"input_ids": [7, 8, 9], "labels": [-100, -100, -100]}
    ]
    assert rows[0]["labels"] == [-100, 8, 9]
