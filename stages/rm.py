"""Stage `rm`: the reward model, trained on groups of ranked answers.

python -m stages.rm --base data/base --sft data/sft --rows data/preprocess/rm
    --prompts data/preprocess/sft/validation.jsonl --out data/rm --metrics metrics/rm.json
"""

import random
import shutil
from pathlib import Path
from typing import Any

import click

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config import Params, load_params
from stages.rlhf.generation import draw_uniforms, generate_all
from stages.rlhf.models import load_sft, load_tokenizer, save_card
from stages.rlhf.ranking_metrics import report
from stages.rlhf.records import RmRow, SftRow, read_rows, write_metrics
from stages.rlhf.reward_model import RewardModel, new_reward_model
from stages.rlhf.reward_training import encode_groups, scored, train


def measure_scale(
    model: RewardModel, questions: list[str], codec: Codec, params: Params
) -> tuple[float, float]:
    """Mean and sd of the raw score over answers that SFT samples for these questions."""
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
    scores = model.score(prompts, answers, codec, chosen.generate.batch_size)
    return scores.mean().item(), max(scores.std().item(), 1e-6)


def metrics_by_kind(model: RewardModel, rows: list[RmRow], codec: Codec) -> dict[str, Any]:
    """The report over all test groups, and again for each kind of hold-out."""
    groups = scored(model, encode_groups(rows, codec), codec, 256)
    kinds = sorted({g.kind for g in groups if g.kind})
    whole = report(groups)
    whole["by_kind"] = {kind: report([g for g in groups if g.kind == kind]) for kind in kinds}
    return whole


def run(params: Params, base: Path, sft: Path, rows: Path, prompts: Path, out: Path) -> Any:
    """Train, scale, save and measure; the metrics."""
    chosen = params.chosen
    roles = load_sft(base, sft, chosen.dtype, chosen.lora)
    codec = Codec(load_tokenizer(base))
    model = new_reward_model(roles, params.rm.head)
    training = train(
        model,
        encode_groups(read_rows(rows / "train.jsonl", RmRow), codec),
        encode_groups(read_rows(rows / "validation.jsonl", RmRow), codec),
        params.rm,
        chosen.rm,
        codec,
        random.Random(runtime.derive_seed(params.seed, "rm", "order")),
    )
    questions = [row.question for row in read_rows(prompts, SftRow)]
    model.mean, model.sd = measure_scale(model, questions, codec, params)
    shutil.rmtree(out, ignore_errors=True)
    model.save(out)
    save_card(out, "reward", {"base": base, "sft": sft})
    test = metrics_by_kind(model, read_rows(rows / "test.jsonl", RmRow), codec)
    return {**test, "training": {**training, "mean": model.mean, "sd": model.sd}}


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
