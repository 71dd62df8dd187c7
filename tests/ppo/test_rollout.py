"""One batch of experience: exact where it must be, and each part counted once."""

from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from stages.rlhf.model.roles import POLICY
from stages.rlhf.ppo import rollout as rollout_module
from stages.rlhf.ppo.core import gae, policy_loss, whiten
from stages.rlhf.ppo.rollout import (
    Minibatch,
    Rollout,
    Targets,
    micro_batches,
    minibatches,
    violations_of,
)
from tests.model_fixtures import (
    KINDS,
    next_to_no_scores,
    ppo_knobs,
    ppo_settings,
    ppo_trainer,
    sampled,
    shake,
)


def targets_of(batch: Rollout | Minibatch) -> Targets:
    assert batch.targets is not None
    return batch.targets


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("method", "dtype"), KINDS)
def test_the_first_rollout_has_no_kl_at_all(
    tmp_path: Path, method: str, dtype: str, temperature: float
) -> None:
    trainer = ppo_trainer(tmp_path, method, dtype, ppo_knobs(temperature=temperature))
    rollout = sampled(trainer)
    assert rollout.old_logprobs.equal(rollout.ref_logprobs)
    lengths = set(rollout.sequences.response_mask.sum(-1).tolist())
    assert len(lengths) >= 2, f"all answers have {lengths} tokens: too alike to tell"
    if dtype == "float32":  # and they are those of the policy's own logits at that temperature
        rows = rollout.sequences
        with torch.no_grad(), trainer.roles.use(POLICY) as policy:
            logits = policy(input_ids=rows.ids, attention_mask=rows.mask).logits / temperature
        chances = torch.log_softmax(logits, -1)
        for i, (mask, where) in enumerate(zip(rows.response_mask, rows.predicts, strict=True)):
            expected = chances[i, where[mask], rows.response[i, mask]]
            torch.testing.assert_close(rollout.old_logprobs[i, mask], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "dtype"), KINDS)
@pytest.mark.parametrize(("steps", "micro"), [(2, 60), (1, 9999), (4, 1)])
def test_ratios_of_the_first_epoch_are_exactly_one(
    tmp_path: Path, method: str, dtype: str, steps: int, micro: int
) -> None:
    settings = ppo_settings(minibatches=steps, micro_batch_tokens=micro)
    trainer = ppo_trainer(tmp_path, method, dtype, settings=settings)
    shake(trainer.roles, POLICY, seed=9, size=0.1)  # the same must hold after updates
    rollout = sampled(trainer)
    counts = []
    for rows in minibatches(list(range(len(rollout))), settings):
        parts = micro_batches(rollout.sequences, rows, micro)
        counts.append(len(parts))
        for places in parts:
            part = rollout[places]
            with trainer.roles.use(POLICY, train=True):
                logprobs = trainer.model.logprobs(part.sequences)
            assert logprobs.requires_grad
            off = (logprobs - part.old_logprobs).abs().max().item()
            assert logprobs.equal(part.old_logprobs), f"rows {places}: off by {off}"
            mask = part.sequences.response_mask
            found = policy_loss(logprobs, part.old_logprobs, part.advantages, mask, 0.2)
            assert found.kl == 0
            assert found.clipped == 0
    assert len(counts) == steps
    assert (max(counts) > 1) == (micro < 9999)


def test_rewards_are_score_penalty_and_kl_each_once(tmp_path: Path) -> None:
    knobs = ppo_knobs(gamma=1.0, lam=1.0, kl_coef=0.3, missing_eos_penalty=1.25)
    trainer = ppo_trainer(tmp_path, ppo=knobs)
    next_to_no_scores(trainer.reward_model)
    shake(trainer.roles, POLICY, seed=9, size=0.1)
    rollout = sampled(trainer)
    reward = rollout.reward
    mask = rollout.sequences.response_mask
    kl = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0).sum(-1)
    ended = (rollout.sequences.response == trainer.codec.eos_id).any(-1)
    assert ended.any()
    assert not ended.all()
    assert (~reward.violations.missing_eos).equal(ended)
    # with gamma = lam = 1 the first token's return is the sum of all the answer's rewards
    expected = -1.25 * (~ended).float() - 0.3 * kl
    torch.testing.assert_close(targets_of(rollout).returns[:, 0], expected, rtol=0, atol=1e-4)


def test_advantages_are_whitened_over_the_whole_batch(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    rollout = sampled(trainer)
    mask = rollout.sequences.response_mask
    chosen, targets = rollout.advantages[mask], targets_of(rollout)
    assert abs(chosen.mean()) < 1e-5
    assert abs(chosen.std(correction=0) - 1) < 1e-4
    raw = torch.where(mask, targets.returns - targets.old_values, 0)
    torch.testing.assert_close(whiten(raw, mask), rollout.advantages, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_the_last_tokens_reward_carries_the_score_of_that_answer(tmp_path: Path, head: str) -> None:
    trainer = ppo_trainer(tmp_path, head=head, ppo=ppo_knobs(score_clip=1e9, uncertainty_coef=0.5))
    rollout = sampled(trainer)
    reward = rollout.reward
    sequences = rollout.sequences
    lengths = sequences.response_mask.sum(-1).tolist()
    prompts = [trainer.prompts[i % len(trainer.prompts)] for i in range(16)]
    answers = [row[:n] for row, n in zip(sequences.response.tolist(), lengths, strict=True)]
    read = [(p.ids, [a]) for p, a in zip(prompts, answers, strict=True)]
    expected = trainer.reward_model.score(read, trainer.codec)
    torch.testing.assert_close(reward.score, expected.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(reward.uncertainty, 0.5 * expected.variance, rtol=1e-4, atol=1e-4)
    assert expected.variance.min() > 1e-3
    paid = reward.total + reward.uncertainty + reward.penalty
    torch.testing.assert_close(paid, reward.score, rtol=1e-4, atol=1e-4)
    targets = targets_of(rollout)
    rewards = torch.zeros_like(targets.old_values)  # no KL yet
    rewards[torch.arange(16), torch.tensor(lengths) - 1] = reward.total
    _, returns = gae(
        rewards, targets.old_values, sequences.response_mask, trainer.ppo.gamma, trainer.ppo.lam
    )
    torch.testing.assert_close(targets.returns, returns, rtol=0, atol=1e-5)


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_the_other_answers_to_a_prompt_are_the_baseline(tmp_path: Path, advantage: str) -> None:
    knobs = ppo_knobs(advantage=advantage, answers_per_prompt=4, kl_coef=0.3)
    trainer = ppo_trainer(tmp_path, ppo=knobs)
    shake(trainer.roles, POLICY, seed=9, size=0.1)
    prompts = trainer.prompts_of(1)
    assert [p.question for p in prompts] == [p.question for p in prompts[::4] for _ in range(4)]
    assert len({p.question for p in prompts}) == 4
    rollout = trainer.rollout(1, prompts)
    assert rollout.targets is None
    mask = rollout.sequences.response_mask
    kl = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0).sum(-1)
    totals = (rollout.reward.total - 0.3 * kl).tolist()
    for i, total in enumerate(totals):
        own = totals[i - i % 4 :][:4]
        others = own[: i % 4] + own[i % 4 + 1 :]
        expected = total - fmean(others) if advantage == "rloo" else total - fmean(own)
        if advantage == "grpo":
            expected /= stdev(own) + 1e-4
        found = rollout.advantages[i]
        torch.testing.assert_close(found, torch.where(mask[i], expected, 0.0), rtol=1e-4, atol=1e-4)
    assert rollout.rows == list(range(16))


def test_rollout_slices_keep_rows_together(tmp_path: Path) -> None:
    rollout = sampled(ppo_trainer(tmp_path))
    rows = [5, 1, 6]
    part = rollout[rows]
    width = part.sequences.response.shape[1]
    assert width == max(rollout.sequences.response_mask.sum(-1)[rows].tolist())
    for whole, own in (
        (rollout.old_logprobs, part.old_logprobs),
        (rollout.advantages, part.advantages),
        *zip(targets_of(rollout), targets_of(part), strict=True),
    ):
        assert own.equal(whole[rows][:, :width])
        assert whole[rows][:, width:].eq(0).all(), "beyond the answers' ends"


def test_the_same_seed_gives_the_same_answers_whatever_is_collected_before(tmp_path: Path) -> None:
    first, second = ppo_trainer(tmp_path), ppo_trainer(tmp_path)
    for update in (5, 6):
        sampled(second, update)
    torch.rand(7)  # global draws must not count
    one, two = sampled(first, 3), sampled(second, 3)
    assert one.sequences.ids.equal(two.sequences.ids)
    assert one.advantages.equal(two.advantages)
    assert not one.sequences.response.equal(sampled(first, 4).sequences.response)


def test_loops_and_copies_cost_what_the_params_say(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path)
    codec, prompts = trainer.codec, trainer.prompts[:4]
    texts = ["네 네 네 네", prompts[1].question, "1947m입니다.", f"{prompts[3].question} 네."]
    answers = [codec.response_ids(text) for text in texts]
    answers[2] = answers[2][:-1]
    found = violations_of(prompts, answers, codec)
    assert found.missing_eos.tolist() == [False, False, True, False]
    assert found.repetition.tolist() == [True, False, False, False]
    assert found.copy.tolist() == [False, True, False, True]


def test_penalties_reach_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = []
    for costs in ({}, {"repetition_penalty": 0.5, "copy_penalty": 0.25}):
        trainer = ppo_trainer(tmp_path, ppo=ppo_knobs(**costs), max_new_tokens=64)
        texts = ["네 네 네 네", trainer.prompts[1].question, *["1947m입니다."] * 14]
        said = [trainer.codec.response_ids(text) for text in texts]
        monkeypatch.setattr(rollout_module, "generate_all", lambda *args, said=said: said)
        rewards.append(sampled(trainer).reward)
    plain, costly = rewards
    assert plain.penalty.tolist() == [0.0] * 16
    assert costly.penalty.tolist() == [0.5, 0.25] + [0.0] * 14
    torch.testing.assert_close(costly.total, plain.total - costly.penalty)


def test_rollouts_are_the_same_decoded_in_parts(tmp_path: Path) -> None:
    whole, parts = (
        sampled(ppo_trainer(tmp_path, decoded_at_once=rows)).sequences for rows in (64, 3)
    )
    assert len(whole) > 3
    assert parts.response.equal(whole.response)
    assert parts.ids.equal(whole.ids)
