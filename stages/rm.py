"""Stage `rm`: the reward model, trained on groups of ranked answers.

python -m stages.rm --base data/base --sft data/sft --rows data/preprocess/rm
    --prompts data/preprocess/sft/validation.jsonl --out data/rm --metrics metrics/rm.json
"""

import shutil
from pathlib import Path
from typing import Any

import click

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config import Params, load_params
from stages.rlhf.generation import draw_uniforms, generate_all
from stages.rlhf.hard_negatives import Fits, best_of, counts, for_training, held_out
from stages.rlhf.models import load_sft, load_tokenizer, save_card
from stages.rlhf.ranking_metrics import accuracy, report
from stages.rlhf.records import RmRow, SftRow, read_rows, write_metrics
from stages.rlhf.reward_groups import encode_groups
from stages.rlhf.reward_model import RewardModel, new_reward_model
from stages.rlhf.reward_training import scored, train


def measure_scale(
    model: RewardModel, questions: list[str], codec: Codec, params: Params
) -> list[tuple[float, float]]:
    """Each member's mean and sd of its raw score over answers SFT samples for these questions."""
    if len(questions) < 2:
        raise ValueError(f"{len(questions)} validation prompts: the reward's sd needs 2 or more")
    chosen, roles = params.chosen, model.roles
    prompts = [codec.prompt_ids(question) for question in questions]
    draws = draw_uniforms(len(prompts), chosen.max_answer_tokens, params.seed, "rm", "scale")
    with roles.use(roles.reference) as policy:
        answers = generate_all(
            policy,
            prompts,
            codec,
            chosen.max_answer_tokens,
            chosen.generate.batch_size,
            params.ppo.temperature,
            draws,
        )
    raw = model.raw_scores([(p, [a]) for p, a in zip(prompts, answers, strict=True)], codec)
    return [(scores.mean().item(), max(scores.std().item(), 1e-6)) for scores in raw]


def metrics_by_kind(
    model: RewardModel, rows: list[RmRow], codec: Codec, window: int
) -> dict[str, Any]:
    """The report over all test groups, and again for each kind of hold-out."""
    groups = scored(model, encode_groups(rows, codec, window), codec)
    kinds = sorted({g.kind for g in groups if g.kind})
    whole = report(groups)
    whole["by_kind"] = {kind: report([g for g in groups if g.kind == kind]) for kind in kinds}
    return whole


def hard_negative_accuracy(
    model: RewardModel, rows: list[RmRow], codec: Codec, fits: Fits, *seed: object
) -> dict[str, Any]:
    """Per kind: share of best answers that score above what was made of them; null where none."""

    def scores(pairs: list[tuple[RmRow, str]]) -> list[float]:
        read = [(codec.prompt_ids(r.question), [codec.answer_ids(text)]) for r, text in pairs]
        return list(model.score(read, codec).mean.tolist())

    best = scores([(row, row.answers[best_of(row)]) for row in rows])
    originals = {row.id: score for row, score in zip(rows, best, strict=True)}
    found: dict[str, Any] = {}
    for kind, twins in held_out(rows, fits, *seed).items():
        if not twins:
            found |= {kind: None, f"{kind}_reason": "none could be made of the test rows"}
            continue
        worse = scores([(row, twin.text) for row, twin in twins])
        found[kind] = accuracy(
            originals[row.id] - score for (row, _), score in zip(twins, worse, strict=True)
        )
    return found


def run(params: Params, base: Path, sft: Path, rows: Path, prompts: Path, out: Path) -> Any:
    """Train, scale, save and measure; the metrics."""
    chosen, seed = params.chosen, (params.seed, "rm")
    roles = load_sft(base, sft, chosen.dtype, chosen.lora)
    codec = Codec(load_tokenizer(base))
    window = roles.model.config.max_position_embeddings

    def fits(answer: str) -> bool:
        return len(codec.answer_ids(answer)) <= chosen.max_answer_tokens

    told = read_rows(rows / "train.jsonl", RmRow)
    extras = for_training(told, params.rm.hard_negatives, fits, *seed, "hard_negatives")
    model = new_reward_model(roles, params.rm.head, params.rm.members, *seed)
    training = train(
        model,
        encode_groups(told, codec, window, extras),
        encode_groups(read_rows(rows / "validation.jsonl", RmRow), codec, window),
        params.rm,
        chosen.rm,
        codec,
        *seed,
    )
    questions = [row.question for row in read_rows(prompts, SftRow)]
    scales = measure_scale(model, questions, codec, params)
    for member, (mean, sd) in zip(model.members, scales, strict=True):
        member.mean, member.sd = mean, sd
        training[member.name] |= {"mean": mean, "sd": sd}
    shutil.rmtree(out, ignore_errors=True)
    model.save(out)
    save_card(out, "reward", {"base": base, "sft": sft})
    test = read_rows(rows / "test.jsonl", RmRow)
    return {
        **metrics_by_kind(model, test, codec, window),
        "hard_negatives": hard_negative_accuracy(model, test, codec, fits, *seed, "held_out"),
        "training": {**training, "hard_negatives": counts(extras)},
    }


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), required=True)
@click.option("--sft", type=click.Path(path_type=Path), required=True)
@click.option("--rows", type=click.Path(path_type=Path), required=True)
@click.option("--prompts", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--metrics", type=click.Path(path_type=Path), required=True)
def main(base: Path, sft: Path, rows: Path, prompts: Path, out: Path, metrics: Path) -> None:
    """Train the reward model."""
    clock = runtime.Clock()
    try:
        params = load_params()
        runtime.start(params.threads, params.seed, "rm")
        figures = run(params, base, sft, rows, prompts, out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_metrics(metrics, figures)
    clock.write(metrics.parent / "runtime" / metrics.name)


if __name__ == "__main__":
    main()
