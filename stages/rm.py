"""Stage `rm`: the reward model, trained on groups of ranked answers.

python -m stages.rm --base data/base --sft data/sft --rows data/preprocess/rm
    --prompts data/preprocess/sft/validation.jsonl --out data/rm --metrics metrics/rm.json
    --plots plots/rm
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import click

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.reward import RmParams
from stages.rlhf.measure.ranked_groups import accuracy
from stages.rlhf.measure.ranking import full_report
from stages.rlhf.model.generation import draw_uniforms, generate_all
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_sft, load_tokenizer, save_card
from stages.rlhf.records import RmRow, SftRow, read_rows, write_metrics
from stages.rlhf.report.reward_figures import draw_all
from stages.rlhf.reward.calibrate import calibrate
from stages.rlhf.reward.groups import EncodedGroup, encode_groups
from stages.rlhf.reward.hard_negatives import Fits, counts, for_training, held_out
from stages.rlhf.reward.model import RewardModel, mean_and_sd, new_reward_model
from stages.rlhf.reward.training import scored, train
from stages.rlhf.runs.cache import run_cached
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]


class Trained(NamedTuple):
    """A reward model before it has a scale, the groups it was chosen by, and what training told."""

    model: RewardModel
    validation: list[EncodedGroup]
    figures: dict[str, Any]


def measure_scale(
    model: RewardModel, questions: list[str], codec: Codec, params: RmParams
) -> list[tuple[float, float]]:
    """Each member's mean and sd of its raw score over answers SFT samples for these questions."""
    if len(questions) < 2:
        raise ValueError(f"{len(questions)} validation prompts: the reward's sd needs 2 or more")
    base_model, roles = params.base_model, model.roles
    prompts = [codec.prompt_ids(question) for question in questions]
    draws = draw_uniforms(len(prompts), base_model.max_answer_tokens, params.seed, "rm", "scale")
    with roles.use(roles.reference) as policy:
        answers = generate_all(
            policy,
            prompts,
            codec,
            base_model.max_answer_tokens,
            base_model.generate.batch_size,
            params.ppo.temperature,
            draws,
        )
    raw = model.raw_scores([(p, [a]) for p, a in zip(prompts, answers, strict=True)], codec)
    return [mean_and_sd(scores) for scores in raw]


def hard_negative_accuracy(
    model: RewardModel, rows: list[RmRow], codec: Codec, fits: Fits, *seed: object
) -> dict[str, Any]:
    """Per kind: share of best answers that score above what was made of them; null where none."""

    def scores(pairs: list[tuple[RmRow, str]]) -> list[float]:
        read = [(codec.prompt_ids(r.question), [codec.response_ids(text)]) for r, text in pairs]
        return list(model.score(read, codec).mean.tolist())

    best = scores([(row, row.answers[row.best]) for row in rows])
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


def trained(
    params: RmParams, roles: Roles, codec: Codec, rows: Path, fits: Fits, work: Path
) -> Trained:
    """The members, trained on the training rows and chosen by validation's."""
    base_model, seed = params.base_model, (params.seed, "rm")
    window = roles.model.config.max_position_embeddings
    told = read_rows(rows / "train.jsonl", RmRow)
    extras = for_training(told, params.rm.hard_negatives, fits, *seed, "hard_negatives")
    validation = encode_groups(read_rows(rows / "validation.jsonl", RmRow), codec, window)
    model = new_reward_model(roles, params.rm.head, params.rm.members, *seed)
    figures = train(
        model,
        encode_groups(told, codec, window, extras),
        validation,
        params.rm,
        base_model.rm,
        codec,
        *seed,
        work=work,
    )
    return Trained(model, validation, {**figures, "hard_negatives": counts(extras)})


def run(params: RmParams, paths: Paths, plots: Path, work: Path) -> tuple[RewardModel, Any]:
    """Train, scale, calibrate and measure; the model and its metrics."""
    base_model, seed = params.base_model, (params.seed, "rm")
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora)
    codec = Codec(load_tokenizer(paths["base"]))

    def fits(answer: str) -> bool:
        return len(codec.response_ids(answer)) <= base_model.max_answer_tokens

    model, validation, training = trained(params, roles, codec, paths["rows"], fits, work)
    questions = [row.question for row in read_rows(paths["prompts"], SftRow)]
    scales = measure_scale(model, questions, codec, params)
    for member, (mean, sd) in zip(model.members, scales, strict=True):
        member.mean, member.sd = mean, sd
        training[member.name] |= {"mean": mean, "sd": sd}
    found = calibrate(
        scored(model, validation, codec), params.rm.length_correction, derive_seed(*seed, "halves")
    )
    model.calibration = found
    test = read_rows(paths["rows"] / "test.jsonl", RmRow)
    window = roles.model.config.max_position_embeddings
    groups = scored(model, encode_groups(test, codec, window), codec)
    draw_all(groups, found.curve, found.temperature, plots)
    report = full_report(
        groups,
        found.curve,
        found.temperature,
        found.temperature_corrected,
        params.rm.resamples,
        derive_seed(*seed, "resamples"),
    )
    return model, {
        **report,
        "length_correction": {
            "applied": found.applied,
            "validation_accuracy": found.accuracy,
            "validation_accuracy_corrected": found.accuracy_corrected,
        },
        "hard_negatives": hard_negative_accuracy(model, test, codec, fits, *seed, "held_out"),
        "training": training,
    }


def folder_option(name: str) -> Any:
    """A required path option."""
    return click.option(f"--{name}", type=click.Path(path_type=Path), required=True)


@click.command(help=__doc__)
@folder_option("base")
@folder_option("sft")
@folder_option("rows")
@folder_option("prompts")
@folder_option("out")
@folder_option("metrics")
@folder_option("plots")
def main(out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Train the reward model."""
    clock = runtime.Clock()
    seconds = metrics.parent / "runtime" / metrics.name
    try:
        params = load(RmParams)
        runtime.start(params.threads, params.seed, "rm")

        def make(work: Path) -> None:
            shutil.rmtree(plots, ignore_errors=True)
            model, figures = run(params, paths, plots, work)
            shutil.rmtree(out, ignore_errors=True)
            model.save(out)
            save_card(out, "reward", {"base": paths["base"], "sft": paths["sft"]})
            write_metrics(metrics, figures)
            clock.write(seconds)

        run_cached("rm", params, paths, [out, plots, metrics, seconds], make)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
