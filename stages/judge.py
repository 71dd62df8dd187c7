"""Stage `judge`: a second reward model, from the base model and on questions of its own.

It trains nobody: it reports, and decides the gate before PPO.

python -m stages.judge --code data/check/judge.json --base data/base --rows data/rows/judge
    --out data/judge --metrics metrics/judge.json
"""

import random
import shutil
from pathlib import Path
from typing import Any

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.reward import JudgeParams
from stages.rlhf.keys import question_key
from stages.rlhf.measure.ranking import report
from stages.rlhf.model.sequences import context_window
from stages.rlhf.model.store import load_base, load_tokenizer, save_card
from stages.rlhf.records import RmRow, details_file, read_rows, runtime_file, write_stage_metrics
from stages.rlhf.reward.calibrate import calibrate
from stages.rlhf.reward.groups import EncodedGroup, encode_groups, prompts_with_responses
from stages.rlhf.reward.model import RewardModel, mean_and_sd, new_reward_model
from stages.rlhf.reward.training import scored, train
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]

HEADLINE = ("accuracy", "length_only_accuracy", "accuracy_length_matched")


def split(
    rows: list[RmRow], share: float, seed: int, at_most: int | None = None
) -> tuple[list[RmRow], list[RmRow]]:
    """The judge's groups for training, and those that choose its epoch and temperature.

    The latter are of `share` of the questions, and no more than `at_most` (None: no limit). All
    groups on one question go to one part. Of two questions or more, each gets at least one.
    """
    keys = [question_key(row.question) for row in rows]
    if len(set(keys)) == 1:
        keys = [row.id for row in rows]
    questions = list(dict.fromkeys(keys))
    most = min(len(questions) - 1, at_most or len(questions))
    count = max(min(round(share * len(questions)), most), min(1, len(questions)))
    held = set(random.Random(seed).sample(questions, count))
    parts: tuple[list[RmRow], list[RmRow]] = ([], [])
    for key, row in zip(keys, rows, strict=True):
        parts[key in held].append(row)
    return parts


def trained(
    params: JudgeParams, paths: Paths, codec: Codec, work: Path, process_group: ProcessGroup
) -> tuple[RewardModel, list[EncodedGroup], dict[str, Any]]:
    """The judge on the base model, its held-out groups, and the figures of its training."""
    base_model, seed = params.base_model, (params.seed, "judge")
    roles = load_base(paths["base"], base_model.dtype, base_model.lora)
    window = context_window(roles.model)
    rows = read_rows(paths["rows"] / "train.jsonl", RmRow)
    share, split_seed = params.judge.validation_share, derive_seed(*seed, "validation")
    train_rows, held = split(rows, share, split_seed, params.validation_rows)
    model = new_reward_model(roles, params.judge.head, 1, *seed, kind="judge", group=process_group)
    validation = encode_groups(held, codec, window)
    groups = encode_groups(train_rows, codec, window)
    figures = train(
        model,
        groups,
        validation,
        params.judge,
        base_model.judge,
        codec,
        *seed,
        kind="judge",
        work=work,
    )
    raw = model.raw_scores(prompts_with_responses(validation), codec)[0]
    model.members[0].mean, model.members[0].sd = mean_and_sd(raw)
    model.calibration = calibrate(
        scored(model, validation, codec), None, derive_seed(*seed, "halves")
    )
    test = encode_groups(read_rows(paths["rows"] / "test.jsonl", RmRow), codec, window)
    return model, test, figures


def run(
    params: JudgeParams, paths: Paths, work: Path, process_group: ProcessGroup
) -> tuple[RewardModel, dict[str, Any]]:
    """Train, and measure on the judge's own test questions."""
    codec = Codec(load_tokenizer(paths["base"]))
    judge, test, training = trained(params, paths, codec, work, process_group)
    assert judge.calibration is not None
    temperature = judge.calibration.temperature
    seed = derive_seed(params.seed, "judge", "resamples")
    block = report(scored(judge, test, codec), temperature, params.judge.resamples, seed)
    return judge, {**block, "temperature": temperature, "training": training}


@click.command(help=__doc__)
@path_options("code", "base", "rows", "out", "metrics")
def main(code: Path, out: Path, metrics: Path, **paths: Path) -> None:
    """Train the judge."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(JudgeParams)
        runtime.start(params.threads, params.seed, "judge")

        def make(work: Path, process_group: ProcessGroup) -> None:
            judge, figures = run(params, paths, work, process_group)
            if not process_group.is_main:
                return
            shutil.rmtree(out, ignore_errors=True)
            judge.save(out)
            save_card(out, "judge", {"base": paths["base"]})
            write_stage_metrics(metrics, figures, HEADLINE)
            clock.write(seconds)

        outs = [out, metrics, details_file(metrics), seconds]
        run_parallel(Stage("judge", params, code, paths), outs, make)


if __name__ == "__main__":
    main()
