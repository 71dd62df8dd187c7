"""Best-of-n: n answers sampled to each question, the one that the reward model likes most kept.

And the gate before PPO: a reward model whose choice among SFT's own answers does not please a judge
trained on other questions is no signal to follow. Q questions, n answers each.
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
    """Q prompts -> each with n answers sampled from the model in its present role."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    draws = draw_uniforms(len(repeated), max_new_tokens, *seed)
    said = generate_all(
        model, repeated, codec, max_new_tokens, batch_size, temperature, draws, checkpointer
    )
    return [(prompt, said[i * n : (i + 1) * n]) for i, prompt in enumerate(prompts)]


def best_of_n_indices(
    reward_model: RewardModel, sampled: Sequence[PromptWithResponses], codec: Codec
) -> Tensor:
    """Q questions with n answers each -> (Q,) place of the one the reward model likes most."""
    return reward_model.corrected_scores(sampled, codec).view(len(sampled), -1).argmax(-1)


def gate(judged: Tensor, chosen: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """(Q, n) scores by the judge, (Q,) places chosen by the reward model -> the gate's figures.

    `sft` is the mean over all n answers, which is what one answer scores on average; `best_of_<n>`
    that of the chosen ones. Passed where the interval of their difference, a paired bootstrap over
    the Q questions, lies above 0. Raises ValueError with fewer than two questions.
    """
    questions, n = judged.shape
    if questions < 2:
        raise ValueError(f"{questions} validation prompts: the gate needs 2 or more")
    plain = judged.double().mean(-1).numpy()
    best = judged.double().gather(-1, chosen[:, None]).squeeze(-1).numpy()
    gain = mean_and_interval("gain", best - plain, resamples, seed, "no questions")
    return {
        "questions": questions,
        "sft": float(plain.mean()),
        f"best_of_{n}": float(best.mean()),
        **gain,
        "passed": gain["gain_ci_low"] > 0,
    }


def gate_failure(file: Path) -> str | None:
    """Why PPO should not be tried, by the judge's metrics; None where the gate is open.

    Raises ValueError where the file holds no gate.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["gate"][GATE]
        gain, low, high = (found[key] for key in ("gain", "gain_ci_low", "gain_ci_high"))
        passed: bool = found["passed"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: gate.{GATE} of stage judge was expected: {error!r}") from error
    if passed:
        return None
    return (
        f"by the judge, best-of-{GATE_OF} under the reward model is worth {gain:+.3f} sd"
        f" [{low:+.3f}, {high:+.3f}] beside SFT; more than 0 was expected (ppo.require_gate)"
    )
