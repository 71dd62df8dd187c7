"""The loop: what a step changes, what it leaves alone, and what it does with NaN."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.rlhf.config.whole import load_params
from stages.rlhf.model.generation import generate_all
from stages.rlhf.model.roles import POLICY, VALUE
from stages.rlhf.ppo.rollout import Rollout, micro_batches
from tests.conftest import write_params
from tests.model_fixtures import PpoTrainer, next_to_no_scores, ppo_knobs, ppo_settings, ppo_trainer

KINDS = [("full", "float32"), ("lora", "float32"), ("lora", "bfloat16"), ("full", "mixed")]


def collected(trainer: PpoTrainer) -> Rollout:
    prompts = [trainer.prompts[i % len(trainer.prompts)] for i in range(16)]
    return trainer._collect(1, prompts)[0]


def ids_of(trainer: PpoTrainer) -> list[list[int]]:
    return [prompt.ids for prompt in trainer.prompts]


class Recorder(torch.optim.SGD):
    """Keeps the gradients of a step, and takes none."""

    def step(self, closure: Any = None) -> None:
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def recorded(trainer: PpoTrainer) -> tuple[Recorder, Recorder]:
    trainer.policy_optimizer = Recorder(trainer.policy_parameters, lr=1.0)
    trainer.value_optimizer = Recorder(trainer.value_parameters, lr=1.0)
    return trainer.policy_optimizer, trainer.value_optimizer


def nothing() -> dict[str, float]:
    return {"chrf": 0.0}


# ---- 4. the first micro-batch


@pytest.mark.parametrize(("method", "dtype"), KINDS)
def test_the_first_minibatch_sees_no_kl_and_clips_nothing(
    tmp_path: Path, method: str, dtype: str
) -> None:
    trainer = ppo_trainer(tmp_path, method, dtype)
    rollout = collected(trainer)
    row = trainer._minibatch(rollout, list(range(8)), train_policy=True)
    assert row["approx_kl"] == 0.0
    assert row["clipfrac"] == 0.0
    assert row["value_clipfrac"] == 0.0
    assert row["policy_grad_norm"] > 0
    again = trainer._minibatch(rollout, list(range(8)), train_policy=True)
    assert again["approx_kl"] > 0, "the step changed nothing"


def test_the_first_epoch_goes_through_the_rollout_as_it_was_collected(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(epochs=3))
    rollout, inner, rows = collected(trainer), trainer._minibatch, []

    def watched(rollout: Rollout, chosen: list[int], *more: Any) -> dict[str, float]:
        rows.append(chosen)
        return inner(rollout, chosen, *more)

    trainer._minibatch = watched  # type: ignore[method-assign]
    trainer._update(1, rollout, train_policy=True)
    in_order = list(range(16))
    epochs = [rows[i] + rows[i + 1] for i in (0, 2, 4)]
    assert epochs[0] == in_order
    assert all(epoch != in_order and sorted(epoch) == in_order for epoch in epochs[1:])
    assert epochs[1] != epochs[2]


def test_minibatches_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"batch_size \(16\) must be divisible by minibatches \(3\)"
    ):
        ppo_settings(minibatches=3)


# ---- 5. what training leaves alone


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
    value_head = trainer.value_head.weight.clone()
    outcome = trainer.train(nothing, lambda row: len(trainer.outcome.validation) == 1)
    assert [row["update"] for row in outcome.updates] == [0, 1, 2]

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
    assert not trainer.value_head.weight.equal(value_head)
    assert all(v.equal(adapters[POLICY][k]) for k, v in outcome.best_state.items())


def test_value_warm_up_leaves_the_policy_alone(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    before = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    row = trainer._update(0, collected(trainer), train_policy=False)
    assert row["policy_grad_norm"] == 0
    assert row["approx_kl"] == 0
    after = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    assert all(after[POLICY][k].equal(v) for k, v in before[POLICY].items())
    assert not all(after[VALUE][k].equal(v) for k, v in before[VALUE].items())


# ---- 8. micro-batches


@pytest.mark.parametrize("rows", [16, 13], ids=["full batch", "last partial batch"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_micro_batches_change_no_gradient(tmp_path: Path, method: str, rows: int) -> None:
    trainer = ppo_trainer(tmp_path, method, settings=ppo_settings(minibatches=1))
    rollout = collected(trainer)
    trainer._minibatch(rollout, list(range(16)), train_policy=True)  # so that ratios are not 1
    recorders = recorded(trainer)
    found: dict[int, list[Tensor]] = {}
    figures = {}
    for micro in (9999, 60, 1):
        trainer.settings = ppo_settings(minibatches=1, micro_batch_tokens=micro)
        figures[micro] = trainer._minibatch(rollout, list(range(rows)), train_policy=True)
        found[micro] = [grad for recorder in recorders for grad in recorder.seen]
    assert figures[9999]["approx_kl"] > 0
    for micro in (60, 1):
        assert figures[micro] == pytest.approx(figures[9999], rel=1e-4, abs=1e-7)
        for mine, whole in zip(found[micro], found[9999], strict=True):
            off = (mine - whole).abs().max() / whole.abs().max().clamp(min=1e-8)
            assert off < 1e-5, f"micro-batches of {micro} tokens: a gradient is off by {off:.2e}"


def test_micro_batches_change_no_weight_after_an_update(tmp_path: Path) -> None:
    states = {}
    for micro in (9999, 60, 1):
        trainer = ppo_trainer(tmp_path, settings=ppo_settings(micro_batch_tokens=micro))
        trainer._update(1, collected(trainer), train_policy=True)
        states[micro] = trainer.roles.state(POLICY)
    for micro in (60, 1):
        for key, weight in states[9999].items():
            torch.testing.assert_close(states[micro][key], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "dtype"), KINDS)
@pytest.mark.parametrize("train_policy", [True, False])
def test_kept_activations_change_no_bit(
    tmp_path: Path, method: str, dtype: str, train_policy: bool
) -> None:
    found = []
    for tokens in (0, 9999):
        trainer = ppo_trainer(tmp_path, method, dtype, settings=ppo_settings(kept_tokens=tokens))
        prompts = [trainer.prompts[i % len(trainer.prompts)] for i in range(16)]
        rollout, _ = trainer._collect(1 if train_policy else 0, prompts)
        graphs = trainer._graphs
        kept = {role: len(parts) for role, parts in graphs.items() if parts}
        row = trainer._update(1, rollout, train_policy)
        assert row["approx_kl"] > 0 or not train_policy
        states = [trainer.roles.state(role) for role in (POLICY, VALUE)]
        found.append((kept, row, *states, dict(trainer.value_head.state_dict())))
    (none, *without), (kept, *within) = found
    parts = len(micro_batches(rollout.sequences, list(range(8)), 60))
    assert none == {}
    assert kept == dict.fromkeys((POLICY, VALUE) if train_policy else (VALUE,), parts)
    assert without[0] == within[0]
    for mine, whole in zip(without[1:], within[1:], strict=True):
        assert all(weight.equal(whole[key]) for key, weight in mine.items())


def test_no_more_tokens_are_kept_than_asked_for(tmp_path: Path) -> None:
    rows = collected(ppo_trainer(tmp_path)).sequences.sizes[:8]
    for tokens, keeps in ((int(rows.sum()), True), (int(rows.sum()) - 1, False)):
        trainer = ppo_trainer(tmp_path, settings=ppo_settings(kept_tokens=tokens))
        collected(trainer)
        assert [bool(parts) for parts in trainer._graphs.values()] == [keeps, keeps]


def test_the_order_of_rows_in_a_minibatch_changes_no_gradient(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, settings=ppo_settings(minibatches=1))
    rollout, recorders = collected(trainer), recorded(trainer)
    trainer._minibatch(rollout, list(range(16)), train_policy=True)
    expected = [grad for recorder in recorders for grad in recorder.seen]
    trainer._minibatch(rollout, [9, 4, 0, 12, 15, 7, 1, 2, 8, 3, 5, 6, 14, 13, 11, 10], True)
    found = [grad for recorder in recorders for grad in recorder.seen]
    for mine, whole in zip(found, expected, strict=True):
        assert (mine - whole).abs().max() <= 1e-5 * whole.abs().max()


# ---- 15. NaN


def poisoned(rollout: Rollout, value: float = torch.nan) -> Rollout:
    advantages = rollout.advantages.clone()
    advantages[3, 0] = value
    fields = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
    return Rollout(**{**fields, "advantages": advantages})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, value: float) -> None:
    trainer = ppo_trainer(tmp_path)
    rollout = collected(trainer)
    before = {name: trainer.roles.state(name) for name in (POLICY, VALUE)}
    head = trainer.value_head.weight.clone()
    row = trainer._minibatch(poisoned(rollout, value), list(range(8)), train_policy=True)
    assert trainer.outcome.bad_steps == 1
    assert all(torch.isfinite(torch.tensor(list(row.values()))))
    for name, state in before.items():
        assert all(trainer.roles.state(name)[k].equal(v) for k, v in state.items()), name
    assert trainer.value_head.weight.equal(head)
    assert all(p.grad is None for p in trainer.policy_parameters + trainer.value_parameters)

    clean = trainer._minibatch(rollout, list(range(8)), train_policy=True)
    assert clean["approx_kl"] == 0, "what the bad step left behind reached the next one"
    assert not trainer.roles.state(POLICY).keys() - before[POLICY].keys()
    assert not all(trainer.roles.state(POLICY)[k].equal(v) for k, v in before[POLICY].items())


def test_three_bad_steps_in_a_row_end_the_run_and_name_the_batch(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    rollout = collected(trainer)
    bad, rows = poisoned(rollout), list(range(8))
    for batch in (bad, bad, rollout, bad, bad):  # the good one starts the count again
        trainer._minibatch(batch, rows, train_policy=True)
    with pytest.raises(ValueError, match=r"3 steps in a row .* not finite; .*bad_batch.json"):
        trainer._minibatch(bad, rows, train_policy=True)
    assert trainer.outcome.bad_steps == 5
    saved = json.loads((tmp_path / "work" / "bad_batch.json").read_text())
    assert saved["ids"] == rollout[rows].sequences.ids.tolist()


# ---- the run


def test_the_kept_state_is_the_one_that_was_better(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, settings=ppo_settings(updates=3))
    states = []

    def validate() -> dict[str, float]:
        states.append(trainer.roles.state(POLICY))
        return {"chrf": float(len(states))}

    outcome = trainer.train(validate, lambda row: row["update"] in (0, 2))
    assert outcome.best_update == 2
    assert [row["update"] for row in outcome.validation] == [0, 1, 2, 3]
    assert all(v.equal(states[2][k]) for k, v in outcome.best_state.items())
    assert not all(v.equal(states[3][k]) for k, v in outcome.best_state.items())
    assert outcome.stopped == "all updates done"


def test_validation_sees_the_policy(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, "lora", settings=ppo_settings(updates=1, learning_rate=0.1))
    seen = []

    def validate() -> dict[str, float]:
        answers = generate_all(trainer.roles.model, ids_of(trainer), trainer.codec, 8, 8)
        seen.append(answers)
        return {"chrf": 0.0}

    trainer.train(validate, lambda row: True)
    with trainer.roles.use("sft") as model:
        assert seen[0] == generate_all(model, ids_of(trainer), trainer.codec, 8, 8)
    with trainer.roles.use(POLICY) as model:
        assert seen[1] == generate_all(model, ids_of(trainer), trainer.codec, 8, 8)
    assert seen[0] != seen[1]


def test_patience_ends_the_run(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(patience=2), settings=ppo_settings(updates=9))
    outcome = trainer.train(nothing, lambda row: row["update"] in (0, 1))
    assert [row["update"] for row in outcome.updates] == [1, 2, 3]
    assert outcome.stopped == "no better update in ppo.patience (2) evaluations"


def test_too_much_kl_ends_the_run(tmp_path: Path) -> None:
    knobs = ppo_knobs(stop_kl_run=1e-9)
    settings = ppo_settings(updates=9, learning_rate=0.05)
    outcome = ppo_trainer(tmp_path, ppo=knobs, settings=settings).train(nothing, lambda row: True)
    kls = [row["kl"] for row in outcome.updates]
    assert kls[0] == 0
    assert all(kl <= 1e-9 for kl in kls[:-1])
    assert kls[-1] > 1e-9
    assert outcome.stopped.startswith(f"KL {kls[-1]:.2f} > ppo.stop_kl_run")


def test_too_much_kl_in_a_batch_ends_its_epochs(tmp_path: Path) -> None:
    counts = {}
    for limit in (1e-12, 1e9):
        knobs = ppo_knobs(stop_kl_batch=limit, epochs=3)
        trainer = ppo_trainer(tmp_path, ppo=knobs)
        steps: list[Any] = []
        inner = trainer._minibatch
        trainer._minibatch = lambda *a, inner=inner, steps=steps: steps.append(0) or inner(*a)
        trainer._update(1, collected(trainer), train_policy=True)
        counts[limit] = len(steps)
    assert counts == {1e-12: 2, 1e9: 6}  # the second minibatch sees what the first step changed


def test_the_kl_coefficient_follows_its_target(tmp_path: Path) -> None:
    knobs = ppo_knobs(kl_target=1000.0, kl_horizon=32, kl_coef=0.1)
    trainer = ppo_trainer(tmp_path, ppo=knobs, settings=ppo_settings(updates=2))
    outcome = trainer.train(nothing, lambda row: True)
    # far below the target: -20 % * 16 / 32 after each update
    assert [row["kl_coef"] for row in outcome.updates] == pytest.approx([0.1, 0.09])
    assert trainer.kl_coef == pytest.approx(0.081)


def test_two_runs_give_the_same_bits(tmp_path: Path) -> None:
    outcomes = []
    for draws in (0, 5):
        trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(value_warmup=1))
        torch.rand(draws)  # what the process drew before must not count
        outcomes.append(trainer.train(nothing, lambda row: True))
    assert outcomes[0].updates == outcomes[1].updates
    for key, weight in outcomes[0].best_state.items():
        assert outcomes[1].best_state[key].equal(weight), key


def test_every_prompt_comes_once_in_each_epoch(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    stream, count = trainer._prompt_stream(), len(trainer.prompts)
    epochs = [[next(stream) for _ in range(count)] for _ in range(3)]
    assert all(sorted(epoch) == sorted(trainer.prompts) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_no_prompts_are_refused(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    with pytest.raises(ValueError, match="no prompts to train PPO on"):
        PpoTrainer(
            trainer.roles,
            trainer.reward_model,
            trainer.codec,
            [],
            trainer.ppo,
            trainer.settings,
            8,
            0,
            tmp_path,
        )


def test_policy_learns_what_the_reward_pays_for(tmp_path: Path) -> None:
    """Paid for ending and for nothing else, the policy learns to end."""
    knobs = ppo_knobs(kl_coef=0.0, missing_eos_penalty=2.0)
    settings = ppo_settings(
        updates=9,
        batch_size=32,
        minibatches=1,
        micro_batch_tokens=9999,
        learning_rate=5e-2,
        value_learning_rate=1e-2,
    )
    trainer = ppo_trainer(tmp_path, ppo=knobs, settings=settings)
    next_to_no_scores(trainer.reward_model)
    trainer.value_head.weight.data.zero_()
    outcome = trainer.train(nothing, lambda row: True)
    first, last = (
        sum(row["eos_rate"] for row in rows) / 3
        for rows in (outcome.updates[:3], outcome.updates[-3:])
    )
    assert last > first + 0.3, f"answers that end: {first:.2f} at first, {last:.2f} at last"


# ---- 12. generation after an update


@pytest.mark.parametrize(("method", "dtype"), [("full", "float32"), ("lora", "float32")])
def test_after_an_update_decoding_is_plain_generation_with_the_new_weights(
    tmp_path: Path, method: str, dtype: str
) -> None:
    trainer = ppo_trainer(tmp_path, method, dtype, settings=ppo_settings(learning_rate=0.1))

    def decoded() -> list[list[int]]:
        with trainer.roles.use(POLICY) as model:
            return generate_all(model, ids_of(trainer), trainer.codec, 8, 4)

    before = decoded()
    trainer._update(1, collected(trainer), train_policy=True)
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
    with pytest.raises(ValueError, match=r"prompt of \d+ tokens and an answer of 250 exceed .*256"):
        ppo_trainer(tmp_path, max_new_tokens=250)


def test_a_negative_kl_coefficient_is_refused_by_name(tmp_path: Path) -> None:
    file = write_params(tmp_path, **{"ppo.kl_coef": -0.1})
    with pytest.raises(ValueError, match=r"params.yaml: ppo.kl_coef .*-0.1"):
        load_params(file)


def test_a_batch_of_empty_answers_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ppo_trainer(tmp_path)
    empty = [[trainer.codec.eos_id]] * 16
    monkeypatch.setattr("stages.rlhf.ppo.rollout.generate_all", lambda *given: empty)
    rollout = collected(trainer)
    assert rollout.sequences.response.tolist() == empty
    before = trainer.roles.state(POLICY)
    row = trainer._update(1, rollout, train_policy=True)
    assert all(torch.isfinite(torch.tensor(list(row.values()))))
    assert trainer.outcome.bad_steps == 0
    assert not all(trainer.roles.state(POLICY)[k].equal(v) for k, v in before.items())
