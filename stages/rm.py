"""Stage `rm`: the reward model, trained on groups of ranked answers.

python -m stages.rm --code data/check/rm.json --base data/base --sft data/sft
    --rows data/rows/rm --prompts data/rows/sft/validation.jsonl --out data/rm
    --metrics metrics/rm.json --plots plots/rm
"""

import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.reward import RmParams
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.measure.ranking import full_report
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import context_window
from stages.rlhf.model.store import load_sft, load_tokenizer, save_card
from stages.rlhf.records import (
    RmRow,
    SftRow,
    details_file,
    read_rows,
    runtime_file,
    subset,
    write_stage_metrics,
)
from stages.rlhf.report.reward_figures import draw_all
from stages.rlhf.reward.best_of_n import sample
from stages.rlhf.reward.calibrate import calibrate
from stages.rlhf.reward.groups import EncodedGroup, encode_groups
from stages.rlhf.reward.hard_negatives import Fits, HardNegative, agrees, counts, for_training, slip
from stages.rlhf.reward.model import RewardModel, new_reward_model
from stages.rlhf.reward.scoring import hard_negative_accuracy, measure_scale
from stages.rlhf.reward.training import scored, train
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]

PROBED = 64  # rows that show whether SFT ever says the best-ranked answer
SLIPS_OF = 2  # samples a row, the first that differs from the best answer is the slip

HEADLINE = (
    "accuracy",
    "length_only_accuracy",
    "accuracy_length_matched",
    "ece",
    "length_correlation_given_rank",
    "by_kind.*.accuracy",
)


class Trained(NamedTuple):
    """A reward model without a scale yet, the groups that chose its epochs, training's figures."""

    model: RewardModel
    validation: list[EncodedGroup]
    figures: dict[str, Any]


def trained(
    params: RmParams,
    roles: Roles,
    codec: Codec,
    rows: Path,
    fits: Fits,
    work: Path,
    process_group: ProcessGroup,
) -> Trained:
    """The members, trained on the training rows, their epochs chosen on validation."""
    base_model, seed = params.base_model, (params.seed, "rm")
    window = context_window(roles.model)
    train_rows = read_rows(rows / "train.jsonl", RmRow)
    extras = for_training(train_rows, params.rm.hard_negatives, fits, *seed, "hard_negatives")
    slips = own_slips(params, roles, codec, train_rows, work, process_group)
    extras = [made or slip for made, slip in zip(extras, slips, strict=True)]
    validation = encode_groups(read_rows(rows / "validation.jsonl", RmRow), codec, window)
    members = params.rm.head, params.rm.members
    model = new_reward_model(roles, *members, *seed, group=process_group)
    figures = train(
        model,
        encode_groups(train_rows, codec, window, extras),
        validation,
        params.rm,
        base_model.rm,
        codec,
        *seed,
        work=work,
    )
    return Trained(model, validation, {**figures, "hard_negatives": counts(extras)})


def own_slips(
    params: RmParams,
    roles: Roles,
    codec: Codec,
    rows: list[RmRow],
    work: Path,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> list[HardNegative | None]:
    """For about `rm.slips` of the rows, what SFT samples and should not have; None for the others.

    SFT's greedy answer is tried on a few rows first: where people answer openly it is never the
    best-ranked one, and nothing is sampled.
    """
    share, base_model, seed = params.rm.slips, params.base_model, (params.seed, "rm", "slips")
    rng = random.Random(derive_seed(*seed))
    chosen = [i for i in range(len(rows)) if rng.random() < share]
    found: list[HardNegative | None] = [None] * len(rows)
    limits = codec, base_model.max_answer_tokens, base_model.generate
    with roles.use(roles.reference) as sft:
        for part, name in ((chosen[:PROBED], "probe"), (chosen[PROBED:], "rest")):
            own = [rows[i] for i in part]
            prompts = [codec.prompt_ids(row.message) for row in own]
            held = Checkpointer(work / f"{name}-greedy", process_group)
            greedy = generate_all(sft, prompts, *limits, checkpointer=held)
            agreed = [i for i, ids in enumerate(greedy) if agrees(codec.text(ids), own[i])]
            if not agreed:
                break
            known = [prompts[i] for i in agreed]
            held = Checkpointer(work / f"{name}-sampled", process_group)
            sampled = sample(sft, known, SLIPS_OF, *limits, 1.0, *seed, name, checkpointer=held)
            for i, (_, answers) in zip(agreed, sampled, strict=True):
                found[part[i]] = slip(own[i], answers, codec)
    return found


def run(
    params: RmParams, paths: Paths, plots: Path, work: Path, process_group: ProcessGroup
) -> tuple[RewardModel, Any]:
    """Train, scale, calibrate and measure; the model and its metrics."""
    base_model, seed = params.base_model, (params.seed, "rm")
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora)
    codec = Codec(load_tokenizer(paths["base"]))

    def fits(answer: str) -> bool:
        return len(codec.response_ids(answer)) <= base_model.max_answer_tokens

    given = params, roles, codec, paths["rows"], fits, work, process_group
    model, validation, training = trained(*given)
    subset_seed = derive_seed(params.seed, "validation")
    prompts = subset(read_rows(paths["prompts"], SftRow), params.validation_rows, subset_seed)
    messages = [row.message for row in prompts]
    scales = measure_scale(model, messages, codec, params)
    for member, (mean, sd) in zip(model.members, scales, strict=True):
        member.mean, member.sd = mean, sd
        training[member.name] |= {"mean": mean, "sd": sd}
    found = calibrate(
        scored(model, validation, codec), params.rm.length_correction, derive_seed(*seed, "halves")
    )
    model.calibration = found
    test = read_rows(paths["rows"] / "test.jsonl", RmRow)
    window = context_window(roles.model)
    groups = scored(model, encode_groups(test, codec, window), codec)
    if process_group.is_main:
        shutil.rmtree(plots, ignore_errors=True)
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


@click.command(help=__doc__)
@path_options("code", "base", "sft", "rows", "prompts", "out", "metrics", "plots")
def main(code: Path, out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Train the reward model."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(RmParams)
        runtime.start(params.threads, params.seed, "rm")

        def make(work: Path, process_group: ProcessGroup) -> None:
            model, figures = run(params, paths, plots, work, process_group)
            if not process_group.is_main:
                return
            shutil.rmtree(out, ignore_errors=True)
            model.save(out)
            save_card(out, "reward", {"base": paths["base"], "sft": paths["sft"]})
            write_stage_metrics(metrics, figures, HEADLINE)
            clock.write(seconds)

        outs = [out, plots, metrics, details_file(metrics), seconds]
        run_parallel(Stage("rm", params, code, paths), outs, make)


if __name__ == "__main__":
    main()
