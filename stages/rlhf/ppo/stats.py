"""Every number that PPO reports. The columns of plots/ppo/updates.csv, one row per update:

B responses of N tokens in all, EOS included; sd: standard deviations of the reward model's scores
of SFT's own responses; V values, G returns, A whitened advantages; mean_B over responses, mean_N
over tokens.

update              its number; up to 0 the value model alone is trained (value warm-up)
score               mean_B clip(mean over the members - length correction, +- score_clip), sd
evidence            mean_B corpus_check * (mean over sentences: 1 supported, -1 not, -.5 unknown)
uncertainty         mean_B min(uncertainty_coef * variance over the members, score_clip), sd
reward              mean_B (score + evidence - uncertainty - penalty - kl_coef * KL), sd
penalty             mean_B of the constants for no EOS, repetition, copy, sd
eos_rate            share of responses that end with EOS
repetition          share of responses with a unit again and again in a row
copy_rate           share of responses that give the question back
kl                  mean_B sum_t log(policy / reference), nats per response (k1: can be < 0)
kl_coef             weight of the KL in this update's rewards, sd per nat
length              mean_B tokens
entropy             mean_N -log policy(sampled token), nats per token, at ppo.temperature
learned             share of responses learned from; all but those that rloo and grpo skip
explained_variance  1 - mean_N (G - V)^2 / variance of G; 1: a perfect value model, 0: a constant;
                    there is none without a value model
policy_loss         mean_N -min(ratio * A, clip(ratio) * A)
clipfrac            share of tokens on which the clip of the ratio is active
approx_kl           mean_N (ratio - 1 - log ratio), nats per token: KL(old policy || new), k3
value_loss          mean_N .5 * max((V - G)^2, (clip(V) - G)^2), sd^2
value_clipfrac      share of tokens on which the clip of the value is active
policy_grad_norm    L2 norm of the policy's gradient, before it is clipped to max_grad_norm
value_grad_norm     L2 norm of the value model's gradient, before it is clipped

The last seven are means over the update's optimiser steps, each measured before its step is taken;
a step that is skipped because it is not finite counts as 0.
"""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from stages.rlhf.ppo.core import masked_mean
from stages.rlhf.ppo.rollout import Rollout, Targets
from stages.rlhf.ppo.state import Progress
from stages.rlhf.records import write_csv
from stages.rlhf.runs.process_group import ProcessGroup

LAST_UPDATE = (
    "kl",
    "kl_coef",
    "score",
    "uncertainty",
    "penalty",
    "reward",
    "eos_rate",
    "entropy",
    "learned",
)
DRAWN = ("update", "score", "kl", "length")  # columns of updates.csv even without an update
VALIDATED = (
    *("chrf_valid", "chrf", "chrf_plus_plus", "exact"),
    *("eos_rate", "repetition", "copy_rate", "length"),
)


def rollout_stats(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """The columns from `score` to `explained_variance`."""
    reward, mask = rollout.reward, rollout.sequences.response_mask
    kl = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0).sum(-1)  # (B,)
    found = {
        "score": reward.score.mean().item(),
        "evidence": reward.evidence.mean().item(),
        "uncertainty": reward.uncertainty.mean().item(),
        "reward": (reward.total - kl_coef * kl).mean().item(),
        "penalty": reward.penalty.mean().item(),
        "eos_rate": 1 - reward.violations.missing_eos.float().mean().item(),
        "repetition": reward.violations.repetition.float().mean().item(),
        "copy_rate": reward.violations.copy.float().mean().item(),
        "kl": kl.mean().item(),
        "kl_coef": kl_coef,
        "length": mask.sum(-1).float().mean().item(),
        "entropy": -masked_mean(rollout.old_logprobs, mask).item(),
        "learned": len(rollout.rows) / len(rollout),
    }
    if rollout.targets:
        found["explained_variance"] = explained_variance(rollout.targets, mask)
    return found


def explained_variance(targets: Targets, mask: Tensor) -> float:
    """Of the returns, by the values."""
    returns = targets.returns
    left = torch.where(mask, returns - targets.old_values, 0)  # (B, R)
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1 - (masked_mean(left**2, mask) / spread.clamp(min=1e-8)).item()


def update_row(
    update: int, rollout: Rollout, kl_coef: float, learned: "StepStats"
) -> dict[str, float]:
    """One row of updates.csv."""
    return {"update": update, **rollout_stats(rollout, kl_coef), **learned._asdict()}


class StepStats(NamedTuple):
    """The columns of one optimiser step."""

    policy_loss: float = 0.0
    clipfrac: float = 0.0
    approx_kl: float = 0.0
    value_loss: float = 0.0
    value_clipfrac: float = 0.0
    policy_grad_norm: float = 0.0
    value_grad_norm: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are."""
        return all(map(math.isfinite, self))


def mean_stats(steps: list[StepStats]) -> StepStats:
    """The mean of each column; 0 without a step."""
    if not steps:
        return StepStats()
    sums = [0.0] * len(StepStats._fields)
    for step in steps:
        sums = [total + value for total, value in zip(sums, step, strict=True)]
    return StepStats(*(total / len(steps) for total in sums))


class LossSums:
    """Sums over the tokens of a minibatch, added up micro-batch by micro-batch, by column."""

    def __init__(self, device: Any) -> None:
        self._sums = {name: torch.zeros((), device=device) for name in StepStats._fields[:5]}

    def add(self, **sums: Tensor) -> None:
        """Add () sums over a micro-batch's tokens; a column that is never added stays 0."""
        for name, value in sums.items():
            self._sums[name] += value.detach()

    def step_stats(
        self,
        tokens: int,
        group: ProcessGroup,
        policy_grad_norm: float = 0.0,
        value_grad_norm: float = 0.0,
    ) -> StepStats:
        """All processes' sums over the minibatch's token count, and the norms."""
        sums = torch.stack(list(self._sums.values()))
        group.sum([sums])
        means = dict(zip(self._sums, (sums / tokens).tolist(), strict=True))
        return StepStats(
            **means, policy_grad_norm=policy_grad_norm, value_grad_norm=value_grad_norm
        )


def summary(progress: Progress) -> dict[str, Any]:
    """metrics/ppo.json: the last update's rollout, and the kept update's validation metrics."""
    last = progress.updates[-1] if progress.updates else {"update": 0}
    rows = {int(row["update"]): row for row in progress.validation}
    kept = progress.kept
    found: dict[str, Any] = {key: last.get(key) for key in LAST_UPDATE}
    found |= {f"{key}_reason": "no update was made" for key in LAST_UPDATE if key not in last}
    found |= {
        "updates": int(last["update"]),
        "best_update": kept.update,
        "skipped": kept.update == 0,
    }
    if kept.update == 0:
        found["skipped_reason"] = kept.reason
    return found | {
        "stopped": progress.stopped,
        "bad_steps": progress.bad_steps,
        "validation": {
            "sft": {key: rows[0][key] for key in VALIDATED},
            "best": {key: rows[kept.update][key] for key in VALIDATED},
        },
    }


def write_curves(progress: Progress, samples: list[dict[str, str]], plots: Path) -> None:
    """plots/ppo: updates.csv, validation.csv, and samples.csv, a column per evaluation."""
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir(parents=True)
    write_csv(plots / "updates.csv", pd.DataFrame(progress.updates or {k: [] for k in DRAWN}))
    write_csv(plots / "validation.csv", pd.DataFrame(progress.validation))
    write_csv(plots / "samples.csv", pd.DataFrame(samples))


def speed(samples: int, seconds: dict[str, float]) -> dict[str, float]:
    """Responses sampled, scored and learned from per second; nothing where there were none."""
    if not samples:
        return {}
    busy = sum(seconds[phase] for phase in ("generate", "score", "update"))
    return {"samples_per_second": samples / busy}
