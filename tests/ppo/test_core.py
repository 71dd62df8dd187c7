"""PPO's arithmetic against naive sums, hand-checked tables, TRL 1.12 and a closed-form optimum."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.rlhf.decoding.tokens import pick
from stages.rlhf.ppo.core import (
    gae,
    group_normalised,
    has_spread,
    leave_one_out,
    masked_mean,
    next_kl_coef,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

LENGTHS = [1, 3, 6, 2]
GOLDEN = Path(__file__).parents[1] / "golden" / "trl_ppo.json"


def ragged(*lengths: int) -> Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def naive_gae(rewards: Any, values: Any, gamma: float, lam: float) -> list[float]:
    """One row without padding: the double sum of (gamma lam)^l delta, written out."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v1 - v for r, v1, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_naive_double_sum(gamma: float, lam: float) -> None:
    mask = ragged(*LENGTHS)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, *mask.shape, generator=generator, dtype=torch.float64)
    rewards = torch.where(mask, rewards, 0)  # values keep what a model says of padding
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, length in enumerate(LENGTHS):
        expected = naive_gae(rewards[i, :length], values[i, :length], gamma, lam)
        off = max(abs(a - float(e)) for a, e in zip(advantages[i].tolist(), expected, strict=False))
        assert off < 1e-12, f"row {i}: {advantages[i].tolist()}, naive {expected}"
        assert advantages[i, length:].eq(0).all()
        assert returns[i, length:].eq(0).all()
        torch.testing.assert_close(
            returns[i, :length], advantages[i, :length] + values[i, :length], rtol=0, atol=1e-12
        )


def test_baselines_of_other_answers_by_hand() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert leave_one_out(returns, 3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    sd = (((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2) ** 0.5 + 1e-4
    expected = [-2 / sd, -1 / sd, 3 / sd, 0.0, 0.0, 0.0]
    assert group_normalised(returns, 3).tolist() == pytest.approx(expected)
    assert has_spread(returns, 3).tolist() == [True] * 3 + [False] * 3
    near = torch.tensor([1.0, 1.0004, 1.0, 1.01])
    assert has_spread(near, 2).tolist() == [False, False, True, True]


def test_leave_one_out_is_an_unbiased_gradient() -> None:
    """The mean over all pairs of answers is the policy gradient, as without a baseline."""
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    chances, rewards = logits.softmax(-1), torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)
    score = torch.eye(3, dtype=torch.float64) - chances  # (a, :) gradient of log pi(a)
    exact = (chances[:, None] * rewards[:, None] * score).sum(0)
    found = torch.zeros(3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            pair = leave_one_out(rewards[[a, b]], 2)
            found += chances[a] * chances[b] * (pair[0] * score[a] + pair[1] * score[b]) / 2
    torch.testing.assert_close(found, exact)


def test_gae_by_hand() -> None:
    # deltas: 0 + .5*2 - 1 = 0;  0 + .5*4 - 2 = 0;  8 - 4 = 4;  gamma * lam = .25
    rewards = torch.tensor([[0.0, 0.0, 8.0]])
    values = torch.tensor([[1.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, ragged(3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0]]


def test_token_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 0.5], [-1.0, torch.nan, torch.inf]])
    ref_logprobs = torch.tensor([[-2.0, -1.0, 0.0], [-4.0, 1.0, 2.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), logprobs, ref_logprobs, ragged(3, 1), 0.5)
    assert found.tolist() == [[-0.5, 0.5, 9.75], [18.5, 0.0, 0.0]]


def test_whitening_ignores_padding() -> None:
    mask = ragged(*LENGTHS)
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)) * 3 + 7
    clean = whiten(torch.where(mask, values, 0), mask)
    for junk in (1e4, torch.nan, torch.inf):
        found = whiten(torch.where(mask, values, junk), mask)
        assert found.equal(clean), f"padding {junk}: {found}, without it {clean}"
    assert clean[~mask].eq(0).all()
    assert abs(clean[mask].mean()) < 1e-6
    assert abs(clean[mask].std(correction=0) - 1) < 1e-5


def test_masked_mean_counts_only_what_counts() -> None:
    values = torch.tensor([[1.0, 3.0], [8.0, torch.nan]])
    assert masked_mean(values, ragged(2, 1)).item() == 4.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 1.0, -1.0, 0),
        (1.1, 1.0, -1.1, 0),
        (1.5, 1.0, -1.2, 1),  # no more reward for going further
        (1.5, -1.0, 1.5, 0),  # but the way back stays open
        (0.5, 1.0, -0.5, 0),
        (0.5, -1.0, 0.8, 1),
        (1.0, 0.0, 0.0, 0),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: int) -> None:
    old = torch.tensor([[-3.0, 0.0]])
    logprobs = torch.tensor([[-3.0 + torch.tensor(ratio).log(), 9.0]], requires_grad=True)
    found = policy_loss(logprobs, old, torch.tensor([[advantage, 5.0]]), ragged(1, 2)[:1], 0.2)
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)
    assert found.clipped.item() == clipped
    assert found.kl.item() == pytest.approx(ratio - 1 - float(torch.tensor(ratio).log()), abs=1e-6)
    found.loss.backward()
    expected = 0.0 if clipped else -advantage * ratio
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([expected, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("value", "old", "wanted", "loss", "clipped"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, 0),
        (1.9, 1.0, 2.0, 0.5 * 0.8**2, 1),  # moved .9 towards the return, .2 of it counts
        (0.1, 1.0, 2.0, 0.5 * 1.9**2, 0),  # moved away: the greater loss
        (3.0, 1.0, 1.0, 0.5 * 2.0**2, 0),
    ],
)
def test_value_loss_by_hand(
    value: float, old: float, wanted: float, loss: float, clipped: int
) -> None:
    row = [torch.tensor([[x, junk]]) for x, junk in ((value, 5.0), (old, -5.0), (wanted, 50.0))]
    found = value_loss(*row, ragged(1, 2)[:1], 0.2)
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)
    assert found.clipped.item() == clipped


def test_moves_within_the_range_are_never_called_clipped() -> None:
    generator = torch.Generator().manual_seed(0)
    values, old, wanted = 0.03 * torch.randn(3, 50, 20, generator=generator)
    assert (values - old).abs().max() < 0.2
    found = value_loss(values, old, wanted, torch.ones(50, 20, dtype=torch.bool), 0.2)
    assert found.clipped == 0, f"{found.clipped} of 1000 values that moved by less than .2"


@pytest.mark.parametrize(
    ("kl_coef", "kl", "expected"),
    [
        (0.1, 6.0, 0.1),  # on target
        (0.1, 6.6, 0.1 * (1 + 0.1 * 0.5)),  # 10 % above
        (0.1, 5.4, 0.1 * (1 - 0.1 * 0.5)),
        (0.1, 600.0, 0.1 * (1 + 0.2 * 0.5)),  # the error is clipped to 20 %
        (0.1, 0.0, 0.1 * (1 - 0.2 * 0.5)),
        (0.499, 600.0, 0.5),
        (0.00501, 0.0, 0.005),
    ],
)
def test_kl_controller_by_hand(kl_coef: float, kl: float, expected: float) -> None:
    found = next_kl_coef(kl_coef, kl, target=6.0, responses=50, horizon=100)
    assert found == pytest.approx(expected, rel=1e-9)


# ---- TRL 1.12's PPOTrainer: tests/benchmarks/make_trl_ppo_golden.py ran it and wrote it down.
# Known differences, each stated by a test below:
#   the score stands one token after EOS there (where there is room), at EOS here;
#   values and value loss there count that token too (mask_p1), here they do not;
#   whitening there divides by n - 1, here by n;
#   approx_kl there is half the mean square of the log-ratio, padding counted; here k3.


@cache
def golden() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert loaded["versions"]["trl"] == "1.12.0"
    return loaded


def rollout(name: str) -> Tensor:
    return torch.tensor(golden()["rollout"][name])


def test_trl_rewards_but_for_the_place_of_the_score() -> None:
    mask, scores, rewards = rollout("mask"), rollout("scores"), rollout("rewards")
    found = token_rewards(
        scores,
        rollout("logprobs"),
        rollout("ref_logprobs"),
        mask,
        golden()["knobs"]["kl_coef"],
    )
    moved = 0
    for i, length in enumerate(mask.sum(-1).tolist()):
        if length < mask.shape[1]:  # TRL: one token late
            rewards[i, length] -= scores[i]
            rewards[i, length - 1] += scores[i]
            moved += 1
    assert moved == int(rollout("contain_eos_token").sum()) == 4
    torch.testing.assert_close(found, rewards, rtol=0, atol=1e-6)


def test_trl_gae_and_returns_on_its_own_mask() -> None:
    knobs, mask_p1 = golden()["knobs"], rollout("mask_p1")
    advantages, returns = gae(
        rollout("rewards"), rollout("values"), mask_p1, knobs["gamma"], knobs["lam"]
    )
    torch.testing.assert_close(advantages, rollout("advantages"), rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, rollout("returns"), rtol=0, atol=1e-6)


def test_trl_whitening_but_for_bessels_correction() -> None:
    mask = rollout("mask")
    count = int(mask.sum())
    found = whiten(rollout("advantages"), mask) * ((count - 1) / count) ** 0.5
    torch.testing.assert_close(found, rollout("whitened"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(4))
def test_trl_losses_and_their_gradients(number: int) -> None:
    knobs, step = golden()["knobs"], golden()["steps"][number]
    rows = step["rows"]
    mask, mask_p1 = rollout("mask")[rows], rollout("mask_p1")[rows]
    logprobs = torch.tensor(step["new_logprobs"], requires_grad=True)
    values = torch.tensor(step["vpred"], requires_grad=True)
    policy = policy_loss(
        logprobs, rollout("logprobs")[rows], rollout("whitened")[rows], mask, knobs["cliprange"]
    )
    value = value_loss(
        values,
        rollout("values")[rows],
        rollout("returns")[rows],
        mask_p1,
        knobs["cliprange_value"],
    )
    tokens, tokens_p1 = mask.sum(), mask_p1.sum()
    loss = policy.loss / tokens + knobs["vf_coef"] * value.loss / tokens_p1
    loss.backward()
    found = {
        "pg_loss": policy.loss / tokens,
        "pg_clipfrac": policy.clipped / tokens,
        "vf_loss": value.loss / tokens_p1,
        "vf_clipfrac": value.clipped / tokens_p1,
        "loss": loss,
    }
    for name, mine in found.items():
        assert mine.item() == pytest.approx(step[name], rel=1e-5, abs=1e-6), name
    share = golden()["gradient_accumulation_steps"]  # accelerate divides every loss by it
    for mine, name in ((logprobs.grad, "grad_logprobs"), (values.grad, "grad_values")):
        torch.testing.assert_close(mine, share * torch.tensor(step[name]), rtol=1e-5, atol=1e-7)


def test_trl_golden_is_a_fair_witness() -> None:
    clipped = [step["pg_clipfrac"] for step in golden()["steps"]]
    assert clipped[0] == 0
    assert min(clipped[1:]) > 0.1
    lengths = rollout("mask").sum(-1).tolist()
    assert len(set(lengths)) >= 4
    assert GOLDEN.stat().st_size < 50_000


# ---- a toy whose optimum is known: ref * exp(R / kl_coef), over responses of two tokens

ARMS, KL_COEF = 5, 0.5


def toy_distance(penalty: str, responses: int = 500, updates: int = 80) -> float:
    """Total variation between the trained joint policy over two tokens and the closed form."""
    generator = torch.Generator().manual_seed(0)
    ref = [torch.randn(ARMS, generator=generator), torch.randn(ARMS, ARMS, generator=generator)]
    score = torch.randn(ARMS, ARMS, generator=generator)
    best = (joint(ref) + score / KL_COEF).flatten().softmax(0)

    tables = [table.clone().requires_grad_() for table in ref]
    optimizer = torch.optim.Adam(tables)
    mask = torch.ones(responses, 2, dtype=torch.bool)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 - update / updates)
        with torch.no_grad():
            # every pair of tokens comes as often as it should, but for one response
            spread = (torch.arange(responses) + torch.rand((), generator=generator)) / responses
            chosen = pick(joint(tables).flatten().expand(responses, -1), spread)
            first, second = chosen // ARMS, chosen % ARMS
            old = two_tokens(tables, first, second)
            reference = two_tokens(ref, first, second)
            if penalty == "k1":
                rewards = token_rewards(score[first, second], old, reference, mask, KL_COEF)
            else:  # k3 in the reward, whose gradient in expectation is not that of the KL
                ratio = reference - old
                rewards = -KL_COEF * (ratio.exp() - 1 - ratio)
                rewards[:, 1] += score[first, second]
            to_go = rewards.flip(1).cumsum(1).flip(1)
            after_first = [to_go[first == arm, 1].mean() for arm in range(ARMS)]
            values = torch.stack(
                [to_go[:, 0].mean().expand(responses), torch.stack(after_first)[first]], 1
            )
            advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
        for _ in range(2):
            loss = policy_loss(two_tokens(tables, first, second), old, advantages, mask, 0.2).loss
            optimizer.zero_grad()
            (loss / mask.sum()).backward()
            optimizer.step()
    return float((joint(tables).exp().flatten() - best).abs().sum() / 2)


def joint(tables: list[Tensor]) -> Tensor:
    """(ARMS, ARMS) log-probabilities of both tokens together."""
    return (tables[0].log_softmax(-1)[:, None] + tables[1].log_softmax(-1)).detach()


def two_tokens(tables: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
    """(B, 2) log-probabilities of the tokens."""
    chances = tables[0].log_softmax(-1)[first], tables[1].log_softmax(-1)[first, second]
    return torch.stack(chances, 1)


def test_toy_reaches_its_closed_form_optimum() -> None:
    distance = toy_distance("k1")
    assert distance < 0.02, f"total variation {distance:.4f}"


def test_toy_with_k3_in_the_reward_does_not() -> None:
    distance = toy_distance("k3")
    assert distance > 0.1, f"total variation {distance:.4f}: the toy cannot tell k1 from k3"


def test_masks_of_this_file() -> None:
    assert all(a >= b for row in ragged(*LENGTHS).int().tolist() for a, b in pairwise(row))
