"""Best-of-n: n responses sampled to each prompt, the one with the highest reward kept.

And the gate before PPO: a reward model whose choice among SFT's own responses does not score higher
with a judge trained on other questions is no signal to follow. Q prompts, n responses each.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.reward.model import PromptWithResponses, RewardModel
from stages.rlhf.runs.checkpoints import NO_CHECKPOINTS, Checkpointer


def sample(
    model: Any,
    prompts: Sequence[list[int]],
    n: int,
    codec: Codec,
    max_new_tokens: int,
    scale: GenerationScale,
    temperature: float,
    *seed: object,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> list[PromptWithResponses]:
    """Q prompts -> each with n responses sampled from the model in its current role."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    draws = draw_uniforms(len(repeated), max_new_tokens, *seed)
    responses = generate_all(
        model, repeated, codec, max_new_tokens, scale, temperature, draws, checkpointer
    )
    return [(prompt, responses[i * n : (i + 1) * n]) for i, prompt in enumerate(prompts)]


def best_of_n_indices(
    reward_model: RewardModel, sampled: Sequence[PromptWithResponses], codec: Codec
) -> Tensor:
    """Q prompts with n responses each -> (Q,) index of the one with the highest reward."""
    return reward_model.corrected_scores(sampled, codec).view(len(sampled), -1).argmax(-1)


def gate(judge_scores: Tensor, indices: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """(Q, n) scores by the judge, (Q,) indices chosen by the reward model -> the gate's figures.

    `sft` is the mean over all n responses, the expected score of a single one; `best_of_<n>` that
    of the chosen ones. Passed if the interval of their difference, a paired bootstrap over the Q
    prompts, is above 0. Raises ValueError with fewer than two prompts.
    """
    prompts, n = judge_scores.shape
    if prompts < 2:
        raise ValueError(f"{prompts} validation prompts: the gate needs 2 or more")
    mean = judge_scores.double().mean(-1).numpy()
    best = judge_scores.double().gather(-1, indices[:, None]).squeeze(-1).numpy()
    gain = mean_and_interval("gain", best - mean, resamples, seed, "no questions")
    return {
        "questions": prompts,
        "sft": float(mean.mean()),
        f"best_of_{n}": float(best.mean()),
        **gain,
        "passed": gain["gain_ci_low"] > 0,
    }
