"""What is refused before a backbone is spread; what comes of it is in test_parallel.py."""

from pathlib import Path

import pytest
import torch

from stages import sft
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.runs import sharding
from tests.conftest import naming
from tests.model_fixtures import save_base, tiny_llama
from tests.sft_fixtures import micro


def test_one_process_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sharding.SHARD, raising=False)
    assert not sharding.wanted()
    monkeypatch.setenv(sharding.SHARD, "1")
    with pytest.raises(ValueError, match=naming(sharding.SHARD, "KOQA_PROCESSES", 2)):
        sharding.wanted()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert sharding.wanted()
    monkeypatch.setenv(sharding.SHARD, "yes")
    with pytest.raises(ValueError, match=naming(sharding.SHARD, "'yes'", "0 or 1")):
        sharding.wanted()


def test_shares_are_not_trained_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv(sharding.SHARD, "1")
    with pytest.raises(ValueError, match=naming("sft.method", "full", sharding.SHARD, "lora")):
        sft.trainable(micro(method="full"), save_base(tmp_path / "base"))


def test_layers_that_are_in_no_list_are_named() -> None:
    model = tiny_llama(32)
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=naming("model_type 'llama'", 7, "no list")):
        sharding.shard(model, decoder_of(model), "cpu")


def test_a_whole_backbone_has_nobody_to_wait_for() -> None:
    decoder = decoder_of(tiny_llama(32))
    assert [*sharding.in_step(decoder, [1, 2], gradients=2)] == [1, 2]
    assert sharding.going_on(decoder, True)
    assert not sharding.going_on(decoder, False)
    assert sharding.most(decoder, 3) == 3


@pytest.mark.parametrize("gradients", [False, True])
def test_a_pass_over_nothing_changes_nothing(gradients: bool) -> None:
    model = tiny_llama(32)
    before = [p.detach().clone() for p in model.parameters()]
    sharding.idle(decoder_of(model), gradients)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.equal(old)
        assert parameter.grad is None or not torch.any(parameter.grad)
