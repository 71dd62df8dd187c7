"""Best-of-n: sample n responses to each prompt, keep the one with the highest reward.

And the gate before PPO: if the reward model's choice among SFT's own responses does not score
higher with a judge trained on other questions, it is not worth optimising. Q prompts, n responses
each.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.rlhf.chat import Codec
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.model.generation import draw_uniforms, generate_all
from stages.rlhf.reward.model import PromptWithResponses, RewardModel
from stages.rlhf.runs.checkpoints import NO_CHECKPOINTS, Checkpointer

GATE_OF = 4  # SFT's samples per question in the gate before PPO
GATE = f"best_of_{GATE_OF}"  # its key in metrics/judge.json


def sample(
    model: Any,
    prompts: Sequence[list[int]],
    n: int,
    codec: Codec,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    *seed: object,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> list[PromptWithResponses]:
    """Q prompts -> each with n responses sampled from the model in its current role."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    draws = draw_uniforms(len(repeated), max_new_tokens, *seed)
    responses = generate_all(
        model, repeated, codec, max_new_tokens, batch_size, temperature, draws, checkpointer
    )
    return [(prompt, responses[i * n : (i + 1) * n]) for i, prompt in enumerate(prompts)]


def best_of_n_indices(
    reward_model: RewardModel, sampled: Sequence[PromptWithResponses], codec: Codec
) -> Tensor:
    """Q prompts with n responses each -> (Q,) index of the one with the highest reward."""
    return reward_model.corrected_scores(sampled, codec).view(len(sampled), -1).argmax(-1)


def gate(judge_scores: Tensor, chosen: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """(Q, n) judge scores, (Q,) indices chosen by the reward model -> the gate's metrics.

    `sft` is the mean over all n responses, the expected score of one; `best_of_<n>` the mean over
    the chosen ones. Passes if the confidence interval of their difference, a paired bootstrap over
    the Q prompts, is above 0. Raises ValueError with fewer than two prompts.
    """
    questions, n = judge_scores.shape
    if questions < 2:
        raise ValueError(f"{questions} validation prompts: the gate needs 2 or more")
    average = judge_scores.double().mean(-1).numpy()
    best = judge_scores.double().gather(-1, chosen[:, None]).squeeze(-1).numpy()
    gain = mean_and_interval("gain", best - average, resamples, seed, "no questions")
    return {
        "questions": questions,
        "sft": float(average.mean()),
        f"best_of_{n}": float(best.mean()),
        **gain,
        "passed": gain["gain_ci_low"] > 0,
    }


def gate_failure(file: Path) -> str | None:
    """Why the judge's metrics rule out PPO; None if the gate passed.

    Raises ValueError if the file has no gate.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["gate"][GATE]
        gain, low, high = (found[key] for key in ("gain", "gain_ci_low", "gain_ci_high"))
        passed: bool = found["passed"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: expected gate.{GATE} of stage judge: {error!r}") from error
    if passed:
        return None
    return (
        f"by the judge, best-of-{GATE_OF} under the reward model gains {gain:+.3f} sd"
        f" [{low:+.3f}, {high:+.3f}] over SFT; expected an interval above 0 (ppo.require_gate)"
    )
