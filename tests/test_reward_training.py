"""Reward training: what a group counts, whatever micro-batch it lies in."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.rlhf import reward_training
from stages.rlhf.chat import Codec
from stages.rlhf.config import Rm, RmSettings
from stages.rlhf.ranking import LOSSES
from stages.rlhf.records import RmRow
from stages.rlhf.reward_model import ROLE, RewardModel, new_reward_model
from stages.rlhf.reward_training import encode_groups, group_losses, scored, train
from tests.model_fixtures import QUESTIONS, sft_roles, shake, shipped, tiny_tokenizer

CODEC = Codec(tiny_tokenizer())
ANSWERS = ["1947m입니다.", "모릅니다.", "한라산은 제주도에 있습니다.", "네", "1950m"]
RANKS = [
    (1.0, 2.0, 3.0, 4.0, 5.0),
    (2.0, 1.0),  # fewer answers
    (1.0, 1.0, 2.0, 2.0, 2.0),  # ties
    (3.0, 3.0, 3.0),  # nothing but ties
    (5.0, 4.0, 3.0, 2.0, 1.0),
    (2.0, 1.0, 1.0, 3.0),
]
ROWS = [
    RmRow(id=str(i), question=QUESTIONS[i], answers=tuple(ANSWERS[: len(ranks)]), ranks=ranks)
    for i, ranks in enumerate(RANKS)
]
GROUPS = encode_groups(ROWS, CODEC)


def knobs(**changed: Any) -> Rm:
    fixed = {"head": "hybrid", "loss": "plackett_luce", "lm_coef": 0.3}
    return shipped().rm.model_copy(update={**fixed, **changed})


def settings(**changed: Any) -> RmSettings:
    fixed = {"epochs": 2, "batch_size": 6, "micro_batch_size": 6, "learning_rate": 1e-2}
    return RmSettings(**{**fixed, **changed})


def reward_model(folder: Path) -> RewardModel:
    roles = sft_roles(folder, "full")
    torch.manual_seed(4)
    model = new_reward_model(roles, "hybrid")
    shake(roles, ROLE, seed=5, size=0.1)
    return model


class Recorder(torch.optim.SGD):
    """Keeps the gradients of a step, and takes none."""

    def step(self, closure: Any = None) -> None:
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.mark.parametrize("loss", list(LOSSES))
def test_group_losses_are_each_groups_own(tmp_path: Path, loss: str) -> None:
    model, rm = reward_model(tmp_path), knobs(loss=loss)
    with torch.no_grad(), model.roles.use(ROLE):
        ranking, lm = group_losses(model, GROUPS, rm, CODEC)
    for i, group in enumerate(GROUPS):
        flat = model.score([group.prompt] * len(group.answers), group.answers, CODEC, 8)
        present = torch.ones(1, len(flat), dtype=torch.bool)
        expected = LOSSES[loss](flat[None], torch.tensor([group.row.ranks]), present)
        torch.testing.assert_close(ranking[i], expected[0], rtol=0, atol=1e-5)
        best = group.answers[group.row.ranks.index(min(group.row.ranks))]
        with torch.no_grad(), model.roles.use(ROLE) as network:
            ids = torch.tensor([group.prompt + best])
            labels = ids.clone()
            labels[:, : len(group.prompt)] = -100
            expected = network(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(lm[i], expected, rtol=0, atol=1e-5)
    assert ranking[3] == 0


@pytest.mark.parametrize("groups", [6, 5], ids=["full batch", "last partial batch"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_micro_batches_change_no_gradient(tmp_path: Path, loss: str, groups: int) -> None:
    model, rm = reward_model(tmp_path), knobs(loss=loss)
    parameters = [*model.roles.parameters(ROLE), *model.head.parameters()]
    found: dict[int, list[Tensor]] = {}
    losses = {}
    for micro in (6, 4, 2, 1):
        recorder = Recorder(parameters, lr=1.0)
        now = settings(batch_size=micro * 6, micro_batch_size=micro)
        losses[micro] = reward_training._step(
            model, GROUPS[:groups], rm, now, CODEC, recorder, parameters
        )
        found[micro] = recorder.seen
    for micro in (4, 2, 1):
        torch.testing.assert_close(losses[micro], losses[6], rtol=1e-5, atol=0)
        for mine, whole in zip(found[micro], found[6], strict=True):
            off = (mine - whole).abs().max() / whole.abs().max().clamp(min=1e-8)
            assert off < 1e-5, f"micro-batches of {micro}: gradient off by {off}"
    assert all(grad.abs().sum() > 0 for grad in found[6])


def test_training_keeps_the_best_epoch_and_leaves_the_backbone_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reward_model(tmp_path)
    backbone = {n: p.clone() for n, p in model.roles.model.named_parameters() if "lora" not in n}
    said = iter([0.4, 0.9, 0.5])
    states = []

    def report(groups: Any) -> dict[str, float]:
        states.append((model.roles.state(ROLE), model.head.value.weight.clone()))
        return {"accuracy": next(said)}

    monkeypatch.setattr(reward_training, "report", report)
    three = settings(epochs=3, batch_size=2, micro_batch_size=1)
    found = train(model, GROUPS, GROUPS, knobs(), three, CODEC, random.Random(0))
    assert found["best_epoch"] == 2
    assert found["validation_accuracy"] == 0.9
    adapter, head = states[1]
    kept = model.roles.state(ROLE)
    assert all(kept[name].equal(adapter[name]) for name in adapter)
    assert model.head.value.weight.equal(head)
    assert not head.equal(states[2][1])
    now = dict(model.roles.model.named_parameters())
    assert all(now[name].equal(weight) for name, weight in backbone.items())


def test_training_learns_the_order_it_is_shown(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    told = [GROUPS[i] for i in (0, 1, 4)]
    before = reward_training.report(scored(model, told, CODEC, 8))["accuracy"]
    many = settings(epochs=12, batch_size=3, micro_batch_size=3)
    found = train(model, told, told, knobs(lm_coef=0.0), many, CODEC, random.Random(0))
    after = reward_training.report(scored(model, told, CODEC, 8))["accuracy"]
    assert after == found["validation_accuracy"]
    assert after > max(0.9, before), f"accuracy {before} before, {after} after"


def test_scored_groups_carry_what_the_report_needs(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    model.mean, model.sd = 1.0, 2.0
    groups = scored(model, GROUPS, CODEC, 3)
    raw = model.score([GROUPS[1].prompt] * 2, GROUPS[1].answers, CODEC, 2)
    assert groups[1].scores == pytest.approx(((raw - 1) / 2).tolist(), abs=1e-5)
    assert groups[1].ranks == (2.0, 1.0)
    assert groups[1].lengths == [8 + 1, 5]
    assert [len(g.scores) for g in groups] == [5, 2, 5, 3, 5, 4]


@pytest.mark.parametrize(("part", "name"), [(0, "rm/train"), (1, "rm/validation")])
def test_nothing_to_train_on_is_said(tmp_path: Path, part: int, name: str) -> None:
    groups = [GROUPS, GROUPS]
    groups[part] = []
    with pytest.raises(ValueError, match=f"{name} is empty: at least one group"):
        train(reward_model(tmp_path), *groups, knobs(), settings(), CODEC, random.Random(0))
