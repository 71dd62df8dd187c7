"""SFT's head against TRL's own: what SFTTrainer reads of it, and the gradients."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from stages.rlhf.model import logprobs
from stages.rlhf.model.roles import Roles
from stages.rlhf.train import tiled_head
from stages.rlhf.train.tiled_head import recomputes, use_tiles
from tests.model_fixtures import LORA, shake, tiny_gemma2, tiny_llama

V, FIELDS = 60, ("log_probs", "entropy", "is_top1", "label_mask")


def trained(make: Any, method: str) -> Any:
    """All of a tiny model open to training, or an adapter."""
    model = make(V)
    if method == "full":
        return model.requires_grad_(True)
    roles = Roles(model, LORA)
    roles.add("default")
    shake(roles, "default", seed=1)
    roles.model.set_adapter("default")
    return roles.model


def batch() -> dict[str, torch.Tensor]:
    """Three rows, the last of which has no answer at all."""
    ids = torch.randint(3, V, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    labels = torch.full_like(ids, -100)
    labels[0, 3:], labels[1, 5:7] = ids[0, 3:], ids[1, 5:7]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_loss_metrics_and_gradients_are_those_of_trls_head(
    monkeypatch: pytest.MonkeyPatch, make: Any, method: str
) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", (4, 17))
    ours = trained(make, method)
    theirs = deepcopy(ours)
    base = theirs.get_base_model() if method == "lora" else theirs
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    use_tiles(ours)
    sides = [model(**batch(), fused_lm_head=True) for model in (ours, theirs)]
    for field in FIELDS:
        found, expected = (getattr(side, field) for side in sides)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sides[0].is_top1.dtype == torch.bool
    for side in sides:
        (-side.log_probs.sum() / 8).backward()
    gradients = [[p.grad for p in m.parameters() if p.requires_grad] for m in (ours, theirs)]
    assert len(gradients[0]) > 3
    for found, expected in zip(*gradients, strict=True):
        size = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * size)


def test_a_batch_without_answers_has_gradients_of_zero() -> None:
    model = trained(tiny_llama, "lora")
    use_tiles(model)
    inputs = batch()
    inputs["labels"][:] = -100
    model(**inputs, fused_lm_head=True).log_probs.sum().backward()
    assert all(p.grad.eq(0).all() for p in model.parameters() if p.requires_grad)


def test_without_it_the_model_is_as_before() -> None:
    model, inputs = tiny_llama(V), batch()
    expected = model(**inputs)
    use_tiles(model)
    found = model(**inputs)
    assert found.logits.equal(expected.logits)
    assert found.loss.equal(expected.loss)


def test_large_decoders_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(V)
    layers = sum(p.numel() for p in model.model.parameters()) - V * 32
    for at, expected in ((layers, True), (layers + 1, False)):
        monkeypatch.setattr(tiled_head, "RECOMPUTED_FROM", at)
        assert recomputes(model) is expected
