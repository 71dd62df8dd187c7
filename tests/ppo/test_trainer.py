"""The loop: what a step changes, what it leaves alone, and what it does with NaN."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.rlhf.config.ppo import PpoConfig
from stages.rlhf.config.whole import load_params
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.model.roles import POLICY, VALUE
from stages.rlhf.ppo.rollout import Rollout
from stages.rlhf.ppo.selection import Kept
from stages.rlhf.ppo.stats import StepStats
from stages.rlhf.ppo.validation import Validation
from tests.conftest import naming, write_params
from tests.model_fixtures import (
    KINDS,
    PpoTrainer,
    Recorder,
    at_once,
    keep,
    next_to_no_scores,
    no_validation,
    ppo_knobs,
    ppo_settings,
    ppo_trainer,
    sampled,
)


def ids_of(trainer: PpoTrainer) -> list[list[int]]:
    return [prompt.ids for prompt in trainer.prompts]


def recorded(trainer: PpoTrainer) -> tuple[Recorder, Recorder]:
    model = trainer.model
    model.optimizers[POLICY] = policy = Recorder(model.parameters[POLICY], lr=1.0)
    model.optimizers[VALUE] = value = Recorder(model.parameters[VALUE], lr=1.0)
    return policy, value


def watch_steps(trainer: PpoTrainer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of each step that is taken from now on."""
    step, seen = trainer.step, []

    def watched(rollout: Rollout, rows: list[int], train_policy: bool) -> StepStats:
        seen.append(rows)
        return step(rollout, rows, train_policy)

    monkeypatch.setattr(trainer, "step", watched)
    return seen


# ---- the first micro-batch


@pytest.mark.parametrize(("method", "dtype"), KINDS)
def test_the_first_minibatch_sees_no_kl_and_clips_nothing(
    tmp_path: Path, method: str, dtype: str
) -> None:
    trainer = ppo_trainer(tmp_path, method, dtype)
    rollout = sampled(trainer)
    row = trainer.step(rollout, list(range(8)), train_policy=True)
    assert row.approx_kl == 0.0
    assert row.clipfrac == 0.0
    assert row.value_clipfrac == 0.0
    assert row.policy_grad_norm > 0
    again = trainer.step(rollout, list(range(8)), train_policy=True)
    assert again.approx_kl > 0, "the step changed nothing"


def test_the_first_epoch_goes_through_the_rollout_as_it_was_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(epochs=3))
    rollout, rows = sampled(trainer), watch_steps(trainer, monkeypatch)
    trainer.learn(1, rollout)
    in_order = list(range(16))
    epochs = [rows[i] + rows[i + 1] for i in (0, 2, 4)]
    assert epochs[0] == in_order
    assert all(epoch != in_order and sorted(epoch) == in_order for epoch in epochs[1:])
    assert epochs[1] != epochs[2]


def test_minibatches_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(ValidationError, match=naming("batch_size", 16, "minibatches", 3)):
        ppo_settings(minibatches=3)


# ---- what training leaves alone


@pytest.mark.parametrize(("method", "dtype"), KINDS)
def test_base_reference_and_reward_model_keep_their_bits(
    tmp_path: Path, method: str, dtype: str
) -> None:
    trainer = ppo_trainer(
        tmp_path, method, dtype, settings=ppo_settings(), ppo=ppo_knobs(value_warmup=1, epochs=1)
    )
    roles, members = trainer.roles, trainer.reward_model.members
    assert [member.name for member in members] == ["reward0", "reward1"]
    frozen = [member.name for member in members] + (["sft"] if method == "lora" else [])
    backbone = {n: p.clone() for n, p in roles.model.named_parameters() if ".lora_" not in n}
    adapters = {name: roles.state(name) for name in [*frozen, POLICY, VALUE]}
    heads = [{k: v.clone() for k, v in m.head.state_dict().items()} for m in members]
    value_head = trainer.model.value_head.weight.clone()
    progress = trainer.train(no_validation, keep(0))
    assert [row["update"] for row in progress.updates] == [0, 1, 2]

    now = dict(roles.model.named_parameters())
    changed = [name for name, weight in backbone.items() if not now[name].equal(weight)]
    assert changed == []
    for name in frozen:
        state = roles.state(name)
        changed = [key for key, tensor in state.items() if not tensor.equal(adapters[name][key])]
        assert changed == [], f"adapter {name}"
    for member, head in zip(members, heads, strict=True):
        state = member.head.state_dict()
        assert all(state[key].equal(tensor) for key, tensor in head.items())
    for name in (POLICY, VALUE):
        state = roles.state(name)
        still = [key for key, tensor in state.items() if tensor.equal(adapters[name][key])]
        assert still == [], f"adapter {name} did not train"
    assert not trainer.model.value_head.weight.equal(value_head)
    assert all(v.equal(adapters[POLICY][k]) for k, v in progress.kept_policy.items())


def test_value_warm_up_leaves_the_policy_alone(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    before = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    row = trainer.learn(0, sampled(trainer))
    assert row.policy_grad_norm == 0
    assert row.approx_kl == 0
    after = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    assert all(after[POLICY][k].equal(v) for k, v in before[POLICY].items())
    assert not all(after[VALUE][k].equal(v) for k, v in before[VALUE].items())


# ---- without a value model


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_without_a_value_model_the_policy_alone_trains(tmp_path: Path, advantage: str) -> None:
    knobs = ppo_knobs(advantage=advantage, answers_per_prompt=4, value_warmup=3)
    trainer = ppo_trainer(tmp_path, ppo=knobs)
    assert list(trainer.model.optimizers) == [POLICY]
    before = trainer.roles.state(POLICY)
    progress = trainer.train(no_validation, keep(0, 2))
    assert [row["update"] for row in progress.updates] == [1, 2]  # and no warm-up
    assert all(row["learned"] == 1 for row in progress.updates)
    assert "explained_variance" not in progress.updates[0]
    assert progress.updates[0]["value_grad_norm"] == 0
    assert not any(progress.kept_policy[k].equal(v) for k, v in before.items())


def test_what_has_no_better_answer_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(advantage="rloo", answers_per_prompt=4))
    next_to_no_scores(trainer.reward_model)
    trainer.ppo = trainer.ppo.model_copy(update={"missing_eos_penalty": 0.0})
    rollout, before = trainer.rollout(1, trainer.prompts_of(1)), trainer.roles.state(POLICY)
    assert rollout.rows == []
    assert trainer.learn(1, rollout) == StepStats()
    assert all(trainer.roles.state(POLICY)[k].equal(v) for k, v in before.items())

    rows = watch_steps(trainer, monkeypatch)
    trainer.learn(1, replace(rollout, rows=[4, 5, 6, 7, 12, 13, 14, 15, 0]))
    assert [len(step) for step in rows[:2]] == [4, 5], "of equal size, where 8 are too few for all"
    assert rows[0] + rows[1] == [4, 5, 6, 7, 12, 13, 14, 15, 0]


def test_estimators_that_compare_answers_need_two() -> None:
    with pytest.raises(ValidationError, match=naming("rloo", "answers_per_prompt", 1)):
        PpoConfig(**{**ppo_knobs().model_dump(), "advantage": "rloo"})
    with pytest.raises(ValidationError, match=naming("advantage", "reinforce")):
        PpoConfig(**{**ppo_knobs().model_dump(), "advantage": "reinforce"})


def test_answers_per_prompt_divide_the_batch(tmp_path: Path) -> None:
    file = write_params(tmp_path, **{"ppo.answers_per_prompt": 7})
    with pytest.raises(ValueError, match=naming("batch_size", "answers_per_prompt", 7)):
        load_params(file)


# ---- micro-batches


@pytest.mark.parametrize("rows", [16, 13], ids=["full batch", "last partial batch"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_micro_batches_change_no_gradient(tmp_path: Path, method: str, rows: int) -> None:
    trainer = ppo_trainer(tmp_path, method, settings=ppo_settings(minibatches=1))
    rollout = sampled(trainer)
    trainer.step(rollout, list(range(16)), train_policy=True)  # so that ratios are not 1
    recorders = recorded(trainer)
    found: dict[int, list[Tensor]] = {}
    figures = {}
    for micro in (9999, 60, 1):
        trainer.settings = ppo_settings(minibatches=1, micro_batch_tokens=micro)
        figures[micro] = trainer.step(rollout, list(range(rows)), train_policy=True)
        found[micro] = [grad for recorder in recorders for grad in recorder.seen]
    assert figures[9999].approx_kl > 0
    for micro in (60, 1):
        expected = pytest.approx(figures[9999]._asdict(), rel=1e-4, abs=1e-7)
        assert figures[micro]._asdict() == expected
        for mine, whole in zip(found[micro], found[9999], strict=True):
            off = (mine - whole).abs().max() / whole.abs().max().clamp(min=1e-8)
            assert off < 1e-5, f"micro-batches of {micro} tokens: a gradient is off by {off:.2e}"


def test_micro_batches_change_no_weight_after_an_update(tmp_path: Path) -> None:
    states = {}
    for micro in (9999, 60, 1):
        trainer = ppo_trainer(tmp_path, settings=ppo_settings(micro_batch_tokens=micro))
        trainer.learn(1, sampled(trainer))
        states[micro] = trainer.roles.state(POLICY)
    for micro in (60, 1):
        for key, weight in states[9999].items():
            torch.testing.assert_close(states[micro][key], weight, rtol=0, atol=1e-5)


def test_the_order_of_rows_in_a_minibatch_changes_no_gradient(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, settings=ppo_settings(minibatches=1))
    rollout, recorders = sampled(trainer), recorded(trainer)
    trainer.step(rollout, list(range(16)), train_policy=True)
    expected = [grad for recorder in recorders for grad in recorder.seen]
    trainer.step(rollout, [9, 4, 0, 12, 15, 7, 1, 2, 8, 3, 5, 6, 14, 13, 11, 10], True)
    found = [grad for recorder in recorders for grad in recorder.seen]
    for mine, whole in zip(found, expected, strict=True):
        assert (mine - whole).abs().max() <= 1e-5 * whole.abs().max()


# ---- NaN


def poisoned(rollout: Rollout, value: float = torch.nan) -> Rollout:
    advantages = rollout.advantages.clone()
    advantages[3, 0] = value
    return replace(rollout, advantages=advantages)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, value: float) -> None:
    trainer = ppo_trainer(tmp_path)
    rollout = sampled(trainer)
    before = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    head = trainer.model.value_head.weight.clone()
    row = trainer.step(poisoned(rollout, value), list(range(8)), train_policy=True)
    assert trainer.progress.bad_steps == 1
    assert all(torch.isfinite(torch.tensor(list(row))))
    for name, state in before.items():
        assert all(trainer.roles.state(name)[k].equal(v) for k, v in state.items()), name
    assert trainer.model.value_head.weight.equal(head)
    assert all(p.grad is None for own in trainer.model.parameters.values() for p in own)

    clean = trainer.step(rollout, list(range(8)), train_policy=True)
    assert clean.approx_kl == 0, "what the bad step left behind reached the next one"
    assert not trainer.roles.state(POLICY).keys() - before[POLICY].keys()
    assert not all(trainer.roles.state(POLICY)[k].equal(v) for k, v in before[POLICY].items())


def test_three_bad_steps_in_a_row_end_the_run_and_name_the_batch(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    rollout = sampled(trainer)
    bad, rows = poisoned(rollout), list(range(8))
    for batch in (bad, bad, rollout, bad, bad):  # the good one starts the count again
        trainer.step(batch, rows, train_policy=True)
    with pytest.raises(ValueError, match=naming(3, "bad_batch.json")):
        trainer.step(bad, rows, train_policy=True)
    assert trainer.progress.bad_steps == 5
    saved = json.loads((tmp_path / "work" / "bad_batch.json").read_text())
    assert saved["ids"] == rollout[rows].sequences.ids.tolist()


# ---- the run


def test_the_kept_policy_is_the_one_that_was_chosen(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, settings=ppo_settings(updates=3))
    states = []

    def validate() -> Validation:
        states.append(trainer.roles.state(POLICY))
        return Validation({"chrf": float(len(states))}, [f"after {len(states) - 1}"])

    progress = trainer.train(validate, keep(0, 2))
    assert progress.kept == Kept(2, "a test")
    assert [row["update"] for row in progress.validation] == [0, 1, 2, 3]
    assert [row["chrf"] for row in progress.validation] == [1.0, 2.0, 3.0, 4.0]
    assert progress.shown == [["after 0"], ["after 1"], ["after 2"], ["after 3"]]
    assert all(v.equal(states[2][k]) for k, v in progress.kept_policy.items())
    assert not all(v.equal(states[3][k]) for k, v in progress.kept_policy.items())
    assert progress.stopped == "all updates done"


def test_validation_sees_the_policy(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, "lora", settings=ppo_settings(updates=1, learning_rate=0.1))
    seen = []

    def validate() -> Validation:
        seen.append(
            generate_all(trainer.roles.model, ids_of(trainer), trainer.codec, 8, at_once(8))
        )
        return no_validation()

    trainer.train(validate, keep(0, 1))
    with trainer.roles.use("sft") as model:
        assert seen[0] == generate_all(model, ids_of(trainer), trainer.codec, 8, at_once(8))
    with trainer.roles.use(POLICY) as model:
        assert seen[1] == generate_all(model, ids_of(trainer), trainer.codec, 8, at_once(8))
    assert seen[0] != seen[1]


def test_where_no_later_update_can_be_kept_the_run_stops(tmp_path: Path) -> None:
    def decide(rows: list[dict[str, float]]) -> Kept:
        return Kept(1, "a test", "enough" if rows[-1]["update"] == 3 else None)

    trainer = ppo_trainer(tmp_path, settings=ppo_settings(updates=9))
    progress = trainer.train(no_validation, decide)
    assert [row["update"] for row in progress.updates] == [1, 2, 3]
    assert (progress.kept.update, progress.stopped) == (1, "enough")


def test_stopped_before_the_first_update_it_keeps_sft(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    sft = trainer.roles.state(POLICY)
    progress = trainer.train(no_validation, lambda rows: Kept(0, "closed", "closed"))
    assert progress.updates == []
    assert [row["update"] for row in progress.validation] == [0]
    assert progress.stopped == "closed"
    assert all(v.equal(sft[k]) for k, v in progress.kept_policy.items())


def test_too_much_kl_ends_the_run(tmp_path: Path) -> None:
    knobs = ppo_knobs(stop_kl_run=1e-9)
    settings = ppo_settings(updates=9, learning_rate=0.05)
    progress = ppo_trainer(tmp_path, ppo=knobs, settings=settings).train(no_validation, keep(0))
    kls = [row["kl"] for row in progress.updates]
    assert kls[0] == 0
    assert all(kl <= 1e-9 for kl in kls[:-1])
    assert kls[-1] > 1e-9
    assert progress.stopped == f"KL {kls[-1]:.2f} > ppo.stop_kl_run (1e-09)"


def test_too_much_kl_in_a_batch_ends_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    for limit in (1e-12, 1e9):
        trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(stop_kl_batch=limit, epochs=3))
        rollout, steps = sampled(trainer), watch_steps(trainer, monkeypatch)
        trainer.learn(1, rollout)
        counts[limit] = len(steps)
    assert counts == {1e-12: 2, 1e9: 6}  # the second minibatch sees what the first step changed


def test_the_kl_coefficient_follows_its_target(tmp_path: Path) -> None:
    knobs = ppo_knobs(kl_target=1000.0, kl_horizon=32, kl_coef=0.1)
    trainer = ppo_trainer(tmp_path, ppo=knobs, settings=ppo_settings(updates=2))
    progress = trainer.train(no_validation, keep(0))
    # far below the target: -20 % * 16 / 32 after each update
    assert [row["kl_coef"] for row in progress.updates] == pytest.approx([0.1, 0.09])
    assert progress.kl_coef == pytest.approx(0.081)


def test_two_runs_give_the_same_bits(tmp_path: Path) -> None:
    runs = []
    for draws in (0, 5):
        trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(value_warmup=1))
        torch.rand(draws)  # what the process drew before must not count
        runs.append(trainer.train(no_validation, keep(0, 1, 2)))
    assert runs[0].updates == runs[1].updates
    for key, weight in runs[0].kept_policy.items():
        assert runs[1].kept_policy[key].equal(weight), key


def test_every_prompt_comes_once_in_each_epoch(tmp_path: Path) -> None:
    settings = ppo_settings(batch_size=6, minibatches=1)  # of 8 prompts: batches cross epochs
    trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(value_warmup=1), settings=settings)
    batches = [trainer.prompts_of(update) for update in (0, 1, 2, 3)]
    taken = [prompt for batch in batches for prompt in batch]
    epochs = [taken[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(trainer.prompts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert trainer.prompts_of(2) == batches[2], "a batch depends on which were asked for before"


def test_no_prompts_are_refused(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    with pytest.raises(ValueError, match=naming("ppo/train.jsonl", "empty")):
        PpoTrainer(
            trainer.roles,
            trainer.reward_model,
            trainer.codec,
            [],
            trainer.ppo,
            trainer.settings,
            8,
            64,
            0,
            tmp_path,
        )


@pytest.mark.parametrize(("penalty", "optimum"), [(2.0, 1.0), (-2.0, 0.0)])
def test_policy_learns_what_the_reward_pays_for(
    tmp_path: Path, penalty: float, optimum: float
) -> None:
    """Paid for ending and for nothing else, the policy always ends; fined for it, never.

    Where the optimum lies is known; on the way there runs differ from seed to seed and from
    processor to processor. 32 responses an update, three updates, two seeds: the standard error of
    a share of .85 is .026.
    """
    knobs = ppo_knobs(kl_coef=0.0, missing_eos_penalty=penalty)
    settings = ppo_settings(
        updates=12,
        batch_size=32,
        minibatches=1,
        micro_batch_tokens=9999,
        learning_rate=1e-2,
        value_learning_rate=1e-2,
    )
    first, last = [], []
    for seed in (0, 1):
        trainer = ppo_trainer(tmp_path, ppo=knobs, settings=settings, seed=seed)
        next_to_no_scores(trainer.reward_model)
        trainer.model.value_head.weight.data.zero_()
        rates = [row["eos_rate"] for row in trainer.train(no_validation, keep(0)).updates]
        first.append(rates[0])
        last += rates[-3:]
    assert abs(fmean(first) - optimum) > 0.25, f"it begins too near the optimum: {first}"
    assert abs(fmean(last) - optimum) < 0.15, f"share of responses that end: {first}, then {last}"


@pytest.mark.parametrize(("eos_rate", "cost"), [(0.8, 0.625), (1.0, 3.0), (None, 3.0)])
def test_a_cap_that_cuts_sft_itself_fines_less(
    tmp_path: Path, eos_rate: float | None, cost: float
) -> None:
    knobs = ppo_knobs(missing_eos_penalty=3.0, repetition_penalty=0.0, copy_penalty=0.0)
    trainer = ppo_trainer(tmp_path, ppo=knobs)
    trainer.progress.validation = [] if eos_rate is None else [{"eos_rate": eos_rate}]
    reward = trainer.rollout(1, trainer.prompts_of(1)).reward
    cut = reward.violations.missing_eos
    assert cut.any()
    assert reward.penalty[cut].tolist() == pytest.approx([cost] * int(cut.sum()))
    assert not reward.penalty[~cut].any()


# ---- generation after an update


@pytest.mark.parametrize(("method", "dtype"), [("full", "float32"), ("lora", "float32")])
def test_after_an_update_decoding_is_plain_generation_with_the_new_weights(
    tmp_path: Path, method: str, dtype: str
) -> None:
    trainer = ppo_trainer(tmp_path, method, dtype, settings=ppo_settings(learning_rate=0.1))

    def decoded() -> list[list[int]]:
        with trainer.roles.use(POLICY) as model:
            return generate_all(model, ids_of(trainer), trainer.codec, 8, at_once(4))

    before = decoded()
    trainer.learn(1, sampled(trainer))
    plain = []
    with trainer.roles.use(POLICY) as model, torch.no_grad():
        for ids in ids_of(trainer):
            said: list[int] = []
            while len(said) < 8 and trainer.codec.eos_id not in said:  # no cache, no batch
                whole = torch.tensor([ids + said])
                said.append(int(model(whole, use_cache=False).logits[0, -1].argmax()))
            plain.append(said)
    assert decoded() == plain
    assert plain != before, "the update changed no answer"


# ---- bad input


def test_a_prompt_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming("train.jsonl", 250, 256)):
        ppo_trainer(tmp_path, max_new_tokens=250)


def test_a_negative_kl_coefficient_is_refused_by_name(tmp_path: Path) -> None:
    file = write_params(tmp_path, **{"ppo.kl_coef": -0.1})
    with pytest.raises(ValueError, match=naming("params.yaml", "ppo.kl_coef", -0.1)):
        load_params(file)


def test_a_batch_of_empty_answers_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ppo_trainer(tmp_path)
    empty = [[trainer.codec.eos_id]] * 16
    monkeypatch.setattr("stages.rlhf.ppo.rollout.generate_all", lambda *given: empty)
    rollout = sampled(trainer)
    assert rollout.sequences.response.tolist() == empty
    before = trainer.roles.state(POLICY)
    row = trainer.learn(1, rollout)
    assert all(torch.isfinite(torch.tensor(list(row))))
    assert trainer.progress.bad_steps == 0
    assert not all(trainer.roles.state(POLICY)[k].equal(v) for k, v in before.items())
