"""Reward training: what a group counts, whatever micro-batch it lies in, and what a member is."""

from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.rlhf.chat import Codec
from stages.rlhf.config.reward import RewardScale, RmConfig
from stages.rlhf.records import RmRow
from stages.rlhf.reward import model as reward_model_module
from stages.rlhf.reward import training
from stages.rlhf.reward.groups import (
    EncodedGroup,
    batch_groups,
    encode_groups,
    prompts_with_responses,
)
from stages.rlhf.reward.hard_negatives import for_training
from stages.rlhf.reward.losses import better, bradley_terry, plackett_luce
from stages.rlhf.reward.model import Features, Head, Member, RewardModel
from stages.rlhf.reward.training import MemberTrainer, bootstrap, scored, train
from tests.conftest import naming
from tests.model_fixtures import Recorder
from tests.reward_fixtures import CODEC, GROUPS, knobs, reward_model, settings
from tests.tokenizer_fixtures import QUESTIONS

LOSSES = {"bradley_terry": bradley_terry, "plackett_luce": plackett_luce}


def one_trainer(model: RewardModel, rm: RmConfig, now: RewardScale | None = None) -> MemberTrainer:
    torch.manual_seed(1)  # the length head's start
    return MemberTrainer(model, 0, rm, now or settings(), CODEC)


@pytest.mark.parametrize(
    ("loss", "head"),
    [("bradley_terry", "hybrid"), ("plackett_luce", "hybrid"), ("plackett_luce", "scalar")],
)
def test_group_losses_are_each_groups_own(tmp_path: Path, loss: str, head: str) -> None:
    model = reward_model(tmp_path, head)
    trainer = one_trainer(model, knobs(loss=loss, head=head))
    batch = batch_groups(GROUPS, [1] * 6, "cpu")
    with torch.no_grad(), model.roles.use("reward0"):
        out = trainer.outputs(GROUPS, batch)
        ranking = trainer.ranking_losses(out.quality, batch)
    assert out.length is None
    assert out.lm is not None
    for i, group in enumerate(GROUPS):
        flat = model.raw_scores([(group.prompt, group.answers)], CODEC)
        pairs = better(torch.tensor([group.row.ranks]), torch.ones(flat.shape, dtype=torch.bool))
        torch.testing.assert_close(ranking[i], LOSSES[loss](flat, pairs)[0], rtol=0, atol=1e-5)
        best = group.answers[group.row.ranks.index(min(group.row.ranks))]
        with torch.no_grad(), model.roles.use("reward0") as network:
            ids = torch.tensor([group.prompt + best])
            labels = ids.clone()
            labels[:, : len(group.prompt)] = -100
            expected = network(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(out.lm[i], expected, rtol=0, atol=1e-5)
    assert ranking[3] == 0


def gradients(
    model: RewardModel, rm: RmConfig, micro: int, groups: Any, counts: list[int], batch: int = 12
) -> tuple[Tensor, list[Tensor]]:
    """The loss of a step and its gradients; no weight moves."""
    trainer = one_trainer(model, rm, settings(batch_size=batch, micro_batch_tokens=micro))
    recorder = Recorder(trainer.parameters, lr=1.0)
    trainer.optimizer = recorder
    return trainer.step(groups, counts), recorder.seen


def same_gradients(found: list[Tensor], expected: list[Tensor], name: str) -> None:
    for mine, whole in zip(found, expected, strict=True):
        off = (mine - whole).abs().max() / whole.abs().max().clamp(min=1e-8)
        assert off < 2e-5, f"{name}: gradient off by {off}"


@pytest.mark.parametrize("groups", [6, 5], ids=["full batch", "last partial batch"])
@pytest.mark.parametrize("odin_coef", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_and_shared_rows_change_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, odin_coef: float, groups: int
) -> None:
    model, rm = reward_model(tmp_path), knobs(loss=loss, odin_coef=odin_coef)
    counts = [1, 2, 1, 3, 1, 1][:groups]
    told = GROUPS[:groups]
    loss_all, whole = gradients(model, rm, 9999, told, counts)
    assert all(grad.abs().sum() > 0 for grad in whole)
    asked = prompts_with_responses(told)
    assert len(model.micro_batches(asked, 1)) == groups > len(model.micro_batches(asked, 200)) > 1
    for micro in (200, 1):
        found, grads = gradients(model, rm, micro, told, counts)
        torch.testing.assert_close(found, loss_all, rtol=1e-5, atol=0)
        same_gradients(grads, whole, f"micro-batches of {micro} tokens")
    monkeypatch.setattr(reward_model_module, "can_pack", lambda model: False)
    found, grads = gradients(model, rm, 9999, told, counts)
    torch.testing.assert_close(found, loss_all, rtol=1e-5, atol=0)
    same_gradients(grads, whole, "answers in rows of their own")


def test_a_question_drawn_twice_counts_as_two(tmp_path: Path) -> None:
    model, rm = reward_model(tmp_path), knobs()
    _, expected = gradients(model, rm, 9999, [GROUPS[0], *GROUPS[:3], GROUPS[0]], [1] * 5)
    _, found = gradients(model, rm, 9999, GROUPS[:3], [3, 1, 1])
    same_gradients(found, expected, "counted")


def test_margin_smoothing_and_length_weights_reach_the_loss(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    seen = []
    for changed in ({}, {"margin": 0.5}, {"label_smoothing": 0.2}):
        trainer = one_trainer(model, knobs(loss="bradley_terry", **changed))
        batch = batch_groups(GROUPS[:1], [1], "cpu")
        seen.append(trainer.ranking_losses(torch.arange(5.0), batch).item())
        if not changed:
            trainer.length_pairs = (2.0, 0.5)
            seen.append(trainer.ranking_losses(torch.arange(5.0), batch).item())
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("head", "lm_coef", "count"),
    [("scalar", 0.0, 0), ("scalar", 0.3, 6), ("hybrid", 0.3, sum(len(g.answers) for g in GROUPS))],
)
def test_log_probabilities_are_of_what_the_head_and_the_lm_loss_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, lm_coef: float, count: int
) -> None:
    model, seen = reward_model(tmp_path, head), []

    def counted(*args: Any, inner: Any) -> Tensor:
        found: Tensor = inner(*args)
        seen.append(len(found))
        return found

    for name in ("response_logprobs", "packed_response_logprobs"):
        inner = getattr(reward_model_module, name)
        monkeypatch.setattr(reward_model_module, name, partial(counted, inner=inner))
    one_trainer(model, knobs(head=head, lm_coef=lm_coef)).step(GROUPS, [1] * 6)
    assert sum(seen) == count


def test_the_length_head_trains_and_is_thrown_away(tmp_path: Path) -> None:
    model, rm = reward_model(tmp_path), knobs(odin_coef=0.5)
    trainer = one_trainer(model, rm)
    assert trainer.length_head is not None
    assert one_trainer(model, knobs()).length_head is None
    before = trainer.length_head.weight.clone()
    trainer.step(GROUPS, [1] * 6)
    assert not trainer.length_head.weight.equal(before)
    # what is scored is the quality head's whole output, and that alone
    batch = batch_groups(GROUPS, [1] * 6, "cpu")
    with torch.no_grad(), model.roles.use("reward0"):
        out = trainer.outputs(GROUPS, batch)
    raw = model.raw_scores(prompts_with_responses(GROUPS), CODEC)[0]
    torch.testing.assert_close(out.quality, raw, rtol=0, atol=1e-4)
    model.save(tmp_path / "rm")
    assert load_file(tmp_path / "rm" / "reward0" / "head.safetensors").keys() == {
        "value.weight",
        "fluency",
        "tokens.where.weight",
        "tokens.value.weight",
        "tokens.fluency",
    }


def test_training_keeps_the_best_epoch_and_leaves_the_backbone_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reward_model(tmp_path, members=2)
    backbone = {n: p.clone() for n, p in model.roles.model.named_parameters() if "lora" not in n}
    said = iter([0.4, 0.9, 0.5, 0.7, 0.1, 0.2])
    states = []

    def report(groups: Any) -> dict[str, float]:
        index = len(states) // 3
        weight = model.members[index].head.value.weight
        states.append((model.roles.state(f"reward{index}"), weight.clone()))
        return {"accuracy": next(said)}

    monkeypatch.setattr(training, "report", report)
    three = settings(epochs=3, batch_size=2, micro_batch_tokens=1)
    rm = knobs(members=2, odin_coef=0.1)
    found = train(model, GROUPS, GROUPS, rm, three, CODEC, "seed")
    assert found["reward0"]["best_epoch"] == 2
    assert found["reward0"]["validation_accuracy"] == 0.9
    assert found["reward1"]["best_epoch"] == 1
    for index, epoch in ((0, 1), (1, 3)):
        adapter, head = states[epoch]
        kept = model.roles.state(f"reward{index}")
        assert all(kept[name].equal(adapter[name]) for name in adapter)
        assert model.members[index].head.value.weight.equal(head)
    assert not states[1][1].equal(states[2][1])
    now = dict(model.roles.model.named_parameters())
    assert all(now[name].equal(weight) for name, weight in backbone.items())


def accuracy(model: RewardModel, groups: Any) -> float:
    found = training.report(scored(model, groups, CODEC))["accuracy"]
    return float(found)


def test_training_learns_the_order_it_is_shown(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    told = [GROUPS[i] for i in (0, 1, 4)]
    before = accuracy(model, told)
    many = settings(epochs=12, batch_size=3, micro_batch_tokens=9999)
    found = train(model, told, told, knobs(lm_coef=0.0), many, CODEC, "seed")
    after = accuracy(model, told)
    assert after == found["reward0"]["validation_accuracy"]
    assert after > max(0.9, before), f"accuracy {before} before, {after} after"


def test_one_member_sees_every_question_and_several_see_bootstraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[tuple[str, int]]]] = {}
    inner = MemberTrainer.step

    def watched(self: MemberTrainer, groups: Any, counts: list[int]) -> Tensor:
        drawn = [(g.row.id, c) for g, c in zip(groups, counts, strict=True)]
        seen.setdefault(self.member.name, []).append(drawn)
        return inner(self, groups, counts)

    monkeypatch.setattr(MemberTrainer, "step", watched)
    once = settings(epochs=1, batch_size=2, micro_batch_tokens=9999)
    taught = {"0", "1", "2", "4", "5"}  # row 3 is tied

    def orders(members: int, *seed: object) -> dict[str, list[tuple[str, int]]]:
        seen.clear()
        model = reward_model(tmp_path, members=members)
        found = train(model, GROUPS, GROUPS, knobs(members=members), once, CODEC, *seed)
        assert (found["groups"], found["groups_without_pairs"]) == (5, 1)
        return {name: [pair for step in steps for pair in step] for name, steps in seen.items()}

    alone = orders(1, "seed")["reward0"]
    assert sorted(alone) == [(name, 1) for name in sorted(taught)]
    several = orders(3, "seed")
    assert list(several) == ["reward0", "reward1", "reward2"]
    for drawn in several.values():
        assert sum(count for _, count in drawn) == 5
        assert {name for name, _ in drawn} <= taught
    assert len({tuple(sorted(drawn)) for drawn in several.values()}) > 1
    assert orders(3, "seed") == several
    assert orders(3, "other") != several


def test_pairs_alone_take_as_many_steps_and_the_same_loss_as_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {"groups": [], "pairs": []}
    losses: dict[str, list[float]] = {"groups": [], "pairs": []}
    inner = MemberTrainer.step
    told = [GROUPS[0], GROUPS[4]]  # ten pairs each
    for elements in sizes:

        def watched(self: MemberTrainer, groups: Any, counts: Any, name: str = elements) -> Tensor:
            sizes[name].append(len(groups))
            loss = inner(self, groups, counts)
            losses[name].append(loss.item())
            return loss

        monkeypatch.setattr(MemberTrainer, "step", watched)
        rm = knobs(elements=elements, loss="bradley_terry", lm_coef=0.0)
        model = reward_model(tmp_path)
        found = train(model, told, told, rm, settings(epochs=1, batch_size=2), CODEC, "seed")
        assert found["groups"] == 2
    assert sizes == {"groups": [2], "pairs": [20]}
    assert losses["pairs"][0] == pytest.approx(losses["groups"][0], abs=1e-5)


def test_a_bootstrap_draws_as_many_with_replacement() -> None:
    counts = bootstrap(1000, 7)
    assert sum(counts) == 1000
    assert 0.6 < sum(count > 0 for count in counts) / 1000 < 0.66  # 1 - 1/e
    assert counts == bootstrap(1000, 7) != bootstrap(1000, 8)


def test_scored_groups_carry_what_the_report_needs(tmp_path: Path) -> None:
    model = reward_model(tmp_path, members=2)
    model.members[0].mean, model.members[0].sd = 1.0, 2.0
    groups = scored(model, GROUPS, CODEC)
    raw = model.raw_scores(prompts_with_responses(GROUPS[1:2]), CODEC)
    expected = ((raw[0] - 1) / 2 + raw[1]) / 2
    assert groups[1].scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert groups[1].ranks == (2.0, 1.0)
    assert groups[1].lengths == [8 + 1, 5]
    assert [len(g.scores) for g in groups] == [5, 2, 5, 3, 5, 4]


@pytest.mark.parametrize(("part", "name"), [(0, "rm/train"), (1, "rm/validation")])
def test_nothing_to_train_on_is_said(tmp_path: Path, part: int, name: str) -> None:
    groups = [GROUPS, GROUPS]
    groups[part] = []
    with pytest.raises(ValueError, match=naming(name)):
        train(reward_model(tmp_path), *groups, knobs(), settings(), CODEC, "seed")


@pytest.mark.parametrize(("part", "name"), [(0, "rm/train"), (1, "rm/validation")])
def test_only_tied_groups_are_nothing_to_train_on(tmp_path: Path, part: int, name: str) -> None:
    groups = [GROUPS, GROUPS]
    groups[part] = GROUPS[3:4]
    with pytest.raises(ValueError, match=naming(name)):
        train(reward_model(tmp_path), *groups, knobs(), settings(), CODEC, "seed")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    with torch.no_grad():
        model.members[0].head.value.weight[0, 0] = torch.nan
    one = settings(epochs=1, batch_size=2, micro_batch_tokens=9999)
    with pytest.raises(ValueError, match=naming("reward0", 1, 3)):
        train(model, GROUPS, GROUPS, knobs(), one, CODEC, "seed")


# ---- answers that exploit a reward


def bad_beside_good(folder: Path, seed: str) -> dict[str, float]:
    """How far bad answers score above good ones, by medians, after training with hard negatives."""
    good = ["높이는 1947m입니다.", "한라산은 제주도에 있습니다.", "대한민국의 수도입니다."]
    pairs = [(question, good[j], good[(j + 1) % 3]) for question in QUESTIONS for j in range(3)]
    rows = [
        RmRow(id=str(i), question=question, answers=answers, ranks=(1.0, 2.0))
        for i, (question, *answers) in enumerate(pairs)
    ]
    extras = for_training(rows, 1.0, lambda text: len(text) < 60, seed)
    model = reward_model(folder, members=2)
    train(
        model,
        encode_groups(rows, CODEC, 256, extras),
        encode_groups(rows, CODEC, 256),
        knobs(members=2, odin_coef=0.1, length_balance=True, lm_coef=0.3),
        settings(epochs=12, batch_size=8, micro_batch_tokens=9999),
        CODEC,
        seed,
    )

    def median(said: list[tuple[str, str]]) -> float:
        read = [(CODEC.prompt_ids(q), [CODEC.response_ids(a)]) for q, a in said]
        return model.score(read, CODEC).mean.median().item()

    looped = f"{good[0]} 1947m입니다. 1947m입니다. 1947m입니다."
    bad = {
        "looped": [(question, looped) for question in QUESTIONS],
        "echoed": [(question, question) for question in QUESTIONS],
        "empty": [(question, "") for question in QUESTIONS],
    }
    level = median([(question, best) for question, best, _ in pairs])
    return {name: median(said) - level for name, said in bad.items()}


def test_looped_echoed_and_empty_answers_score_below_good_ones(tmp_path: Path) -> None:
    """By 2, at which Bradley-Terry gives the good one 88 %; untrained, by 1 at random either way.

    On average over seeds: in one training rounding alone can move a score as far as a seed.
    """
    found = [bad_beside_good(tmp_path, seed) for seed in ("a", "b")]
    for name in found[0]:
        assert fmean(one[name] for one in found) < -2, (name, found)


# ---- a planted length bias


class Planted(RewardModel):
    """Reads two features off the ids: what an answer is worth, and how wordy it looks.

    An answer's first id is worth * 100, its second wordiness * 100, both off by 1000; the rest is
    length. Both features are seen through noise; wordiness follows length, and length moves worth.
    """

    def features(
        self, questions: Any, codec: Codec, logprobs: bool = True, rows: Any = None
    ) -> Features:
        answers = [answer for _, given in questions for answer in given]
        read = (torch.tensor([answer[:2] for answer in answers]).float() - 1000) / 100
        return Features(read, None, None, torch.ones(len(answers), 1, dtype=torch.bool))

    def micro_batches(self, questions: Any, tokens: int) -> list[list[int]]:
        return [list(range(len(questions)))]


class NoBackbone:
    """Roles of a model that has nothing but its head."""

    reference = None
    model = SimpleNamespace(device=torch.device("cpu"), get_decoder=lambda: None)

    def use(self, name: str, train: bool = False) -> Any:
        return nullcontext()

    def parameters(self, name: str) -> list[Any]:
        return []

    def state(self, name: str) -> dict[str, Tensor]:
        return {}

    def load_state(self, name: str, state: dict[str, Tensor]) -> None:
        """Nothing to load."""


def planted_groups(count: int, answers: int, bias: float, matched: bool, seed: int) -> list[Any]:
    """Groups ranked by worth + bias * length; lengths of a group all alike where `matched`."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    length = normal(count, 1 if matched else answers).clamp(-2.5, 2.5).expand(count, answers)
    worth = normal(count, answers)
    told = worth + bias * length + 0.3 * normal(count, answers)
    seen_worth = worth + 0.4 * length + 0.3 * normal(count, answers)
    seen_words = length + 0.7 * normal(count, answers)
    ranks = 1 + (-told).argsort(-1).argsort(-1)
    groups = []
    for g in range(count):
        ids = [
            [1000 + round(100 * w), 1000 + round(100 * s)] + [3] * (20 + round(4 * n))
            for w, s, n in zip(
                seen_worth[g].tolist(), seen_words[g].tolist(), length[g].tolist(), strict=True
            )
        ]
        row = RmRow(
            id=str(g),
            question="?",
            answers=tuple("가" * len(answer) for answer in ids),
            ranks=tuple(ranks[g].tolist()),
        )
        table = ranks[g : g + 1].float()
        pairs = better(table, torch.ones(1, answers, dtype=torch.bool))[0]
        best = row.ranks.index(1)
        groups.append(EncodedGroup([1], ids, pairs, torch.zeros_like(pairs).float(), best, row))
    return groups


@cache
def planted_report(answers: int, **changed: Any) -> dict[str, float]:
    """Accuracy on length-matched pairs and correlation with length given the true rank."""
    torch.manual_seed(0)
    roles: Any = NoBackbone()
    model = Planted(roles, [Member("reward0", Head(2, hybrid=False))])
    rm = knobs(head="scalar", lm_coef=0.0, **changed)
    now = settings(epochs=1, batch_size=8, micro_batch_tokens=9999, learning_rate=5e-2)
    biased = planted_groups(1600, answers, bias=1.5, matched=False, seed=1)
    train(model, biased, planted_groups(60, answers, 0.0, False, 2), rm, now, CODEC, "seed")
    matched = scored(model, planted_groups(4000, 2, 0.0, True, 3), CODEC)
    free = scored(model, planted_groups(1600, 5, 0.0, False, 4), CODEC)
    given_rank = training.report(free)["length_correlation_given_rank"]
    return {
        "matched": training.report(matched)["accuracy_length_matched"],
        "given_rank": given_rank,
    }


PLAIN_BIAS = [("bradley_terry", 2), ("bradley_terry", 5), ("plackett_luce", 5)]
# The least-squares weights of the two features are right on .813 of matched pairs, those that let
# no length through on .847 (1/2 + asin(rho) / pi). Half of the gain is asked for: it is 3 standard
# errors of a difference on 4000 pairs, so neither the draw nor a processor's rounding decides.
HALF_GAIN = 0.017


@pytest.mark.parametrize(("loss", "answers"), PLAIN_BIAS)
def test_odin_takes_a_planted_length_bias_out(loss: str, answers: int) -> None:
    plain = planted_report(answers, loss=loss)
    odin = planted_report(answers, loss=loss, odin_coef=0.1)
    assert plain["given_rank"] > 0.5
    assert abs(odin["given_rank"]) < 0.1, (plain, odin)
    assert odin["matched"] > plain["matched"] + HALF_GAIN, (plain, odin)


@pytest.mark.parametrize(("loss", "answers"), PLAIN_BIAS)
def test_balanced_lengths_weaken_a_planted_bias(loss: str, answers: int) -> None:
    plain = planted_report(answers, loss=loss)
    balanced = planted_report(answers, loss=loss, length_balance=True)
    assert balanced["given_rank"] < plain["given_rank"] - 0.03, (plain, balanced)
    assert balanced["matched"] > plain["matched"] + HALF_GAIN, (plain, balanced)
