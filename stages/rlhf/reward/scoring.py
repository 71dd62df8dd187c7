"""What a trained reward model says of data it was not trained on: its scale, its hard negatives."""

from typing import Any

from stages.rlhf.chat import Codec
from stages.rlhf.config.reward import RmParams
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.measure.ranked_groups import accuracy
from stages.rlhf.records import RmRow
from stages.rlhf.reward.hard_negatives import Fits, held_out
from stages.rlhf.reward.model import RewardModel, mean_and_sd
from stages.rlhf.runs.checkpoints import Checkpointer


def measure_scale(
    model: RewardModel, messages: list[str], codec: Codec, params: RmParams
) -> list[tuple[float, float]]:
    """Each member's mean and sd of its raw score over answers SFT samples for these messages."""
    if len(messages) < 2:
        raise ValueError(f"{len(messages)} validation prompts: the reward's sd needs 2 or more")
    base_model, roles = params.base_model, model.roles
    prompts = [codec.prompt_ids(message) for message in messages]
    draws = draw_uniforms(len(prompts), base_model.max_answer_tokens, params.seed, "rm", "scale")
    with roles.use(roles.reference) as policy:
        answers = generate_all(
            policy,
            prompts,
            codec,
            base_model.max_answer_tokens,
            base_model.generate,
            params.ppo.temperature,
            draws,
            Checkpointer(None, model.group),
        )
    raw = model.raw_scores([(p, [a]) for p, a in zip(prompts, answers, strict=True)], codec)
    return [mean_and_sd(scores) for scores in raw]


def hard_negative_accuracy(
    model: RewardModel, rows: list[RmRow], codec: Codec, fits: Fits, *seed: object
) -> dict[str, Any]:
    """Per kind: share of best answers that score above what was made of them; null where none."""

    def scores(pairs: list[tuple[RmRow, list[int]]]) -> list[float]:
        read = [(codec.prompt_ids(row.message), [ids]) for row, ids in pairs]
        return list(model.score(read, codec).mean.tolist())

    best = scores([(row, codec.response_ids(row.best_answer)) for row in rows])
    found: dict[str, Any] = {}
    for kind, twins in held_out(rows, fits, *seed).items():
        if not twins:
            found |= {kind: None, f"{kind}_reason": "none could be made of the test rows"}
            continue
        worse = scores([(rows[i], twin.response_ids(codec)) for i, twin in twins])
        found[kind] = accuracy(best[i] - score for (i, _), score in zip(twins, worse, strict=True))
    return found
