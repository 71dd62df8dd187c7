"""The arithmetic of PPO: tensors in, tensors out.

B responses, R response tokens. Masks are bool, True = a token of the response (EOS included).
"""

from typing import NamedTuple

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, R) x 2 -> (): mean over the tokens that count."""
    return torch.where(mask, values, 0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """(B, R) x 2 -> (B, R): mean 0 and sd 1 over all tokens that count; 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0)


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """(B,), (B, R) x 3 -> (B, R): -kl_coef * k1 at each token, the score at the last one.

    k1 = log(policy / reference) of the sampled token: its gradient in expectation is that of the KL
    (Ziegler et al. 2019, eq. 2).
    """
    # r_t = -kl_coef * (log pi(a_t | s_t) - log ref(a_t | s_t)) + score * [t is the last token]
    rewards = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0)
    last = mask.sum(-1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(B, R) x 3 -> advantages (B, R), returns (B, R). Schulman et al. 2016, eq. 16.

    The value after the last token is 0: a response is an episode, whether or not it was cut off.
    """
    values = torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    last_gae = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        next_values = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(last_gae)
        # delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        # A_t = delta_t + gamma * lam * A_{t+1}
        last_gae = torch.where(mask[:, t], delta + gamma * lam * last_gae, 0)
        advantages[:, t] = last_gae
    return advantages, torch.where(mask, advantages + values, 0)


def leave_one_out(returns: Tensor, answers: int) -> Tensor:
    """(B,) returns, `answers` of each prompt in a row -> (B,) advantages over the others' mean.

    RLOO, Ahmadian et al. 2024, arXiv 2402.14740, section 3.2.
    """
    groups = returns.view(-1, answers)  # (prompts, K)
    # A_i = G_i - mean of the K - 1 other G_j
    others = (groups.sum(-1, keepdim=True) - groups) / (answers - 1)
    return (groups - others).flatten()


def group_normalised(returns: Tensor, answers: int) -> Tensor:
    """(B,) returns, `answers` of each prompt in a row -> (B,): less their mean, over their sd.

    GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2; the KL is in the returns here.
    """
    groups = returns.view(-1, answers)  # (prompts, K)
    # A_i = (G_i - mean G) / (sd G + 1e-4)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-4)).flatten()


def has_spread(returns: Tensor, answers: int) -> Tensor:
    """(B,) returns, `answers` of each prompt in a row -> (B,) bool: there is a better one to learn.

    Equal answers batched with others differ in the last digits: up to 1e-3 sd is no spread.
    """
    groups = returns.view(-1, answers)  # (prompts, K)
    spread = groups.amax(-1) - groups.amin(-1) > 1e-3
    return spread.repeat_interleave(answers)


class PolicyLoss(NamedTuple):
    """Sums over tokens, for the caller to divide by its global token count."""

    loss: Tensor  # () with gradient
    clipped: Tensor  # () tokens where the clip was active
    kl: Tensor  # () k3 estimate of KL(old || new)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> PolicyLoss:
    """(B, R) x 4 -> sums of -min(ratio * A, clip(ratio) * A). Schulman et al. 2017, eq. 7."""
    # ratio_t = pi(a_t | s_t) / pi_old(a_t | s_t)
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    ratio = torch.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        active = ((clipped > plain) & mask).sum()
        # k3 = (ratio - 1) - log ratio: KL(old || new), unbiased and never below 0
        kl = torch.where(mask, ratio - 1 - log_ratio, 0).sum()
    return PolicyLoss(torch.where(mask, torch.maximum(plain, clipped), 0).sum(), active, kl)


class ValueLoss(NamedTuple):
    """Sums over tokens, for the caller to divide by its global token count."""

    loss: Tensor  # () with gradient
    clipped: Tensor  # () tokens where the clip was active


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float
) -> ValueLoss:
    """(B, R) x 4 -> sums of .5 max((V - G)^2, (clip(V) - G)^2). Baselines' PPO2."""
    values_clipped = values.clamp(old_values - cliprange, old_values + cliprange)
    plain, clipped = (values - returns) ** 2, (values_clipped - returns) ** 2
    loss = 0.5 * torch.where(mask, torch.maximum(plain, clipped), 0).sum()
    return ValueLoss(loss, ((clipped > plain) & mask).sum())


def next_kl_coef(kl_coef: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """Ziegler et al. 2019, section 2.2: proportional control of log kl_coef, kept in [.005, .5]."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return min(max(kl_coef * (1 + error * responses / horizon), 0.005), 0.5)
