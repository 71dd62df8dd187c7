"""Stage `judge`: a second reward model, from base and on questions of its own, and the gate.

It teaches nobody: it tells what the reward model's choice among SFT's answers is worth.

python -m stages.judge --base data/base --sft data/sft --rm data/rm --rows data/preprocess/judge
    --prompts data/preprocess/ppo/validation.jsonl --out data/judge --metrics metrics/judge.json
"""

import random
import shutil
from pathlib import Path
from typing import Any

import click

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.reward import JudgeParams
from stages.rlhf.measure.ranking import report
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer, save_card
from stages.rlhf.records import PromptRow, RmRow, read_rows, write_metrics
from stages.rlhf.reward.best_of_n import GATE, GATE_OF, best_of_n_indices, gate, sample
from stages.rlhf.reward.calibrate import calibrate
from stages.rlhf.reward.groups import EncodedGroup, encode_groups, prompts_with_responses
from stages.rlhf.reward.model import (
    RewardModel,
    load_reward_model,
    mean_and_sd,
    new_reward_model,
)
from stages.rlhf.reward.training import scored, train
from stages.rlhf.runs.cache import run_cached
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]


def split(rows: list[RmRow], share: float, seed: int) -> tuple[list[RmRow], list[RmRow]]:
    """The judge's questions for training, and those that choose its epoch and temperature."""
    held = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    parts: tuple[list[RmRow], list[RmRow]] = ([], [])
    for i, row in enumerate(rows):
        parts[i in held].append(row)
    return parts


def trained(
    params: JudgeParams, paths: Paths, codec: Codec, work: Path
) -> tuple[RewardModel, list[EncodedGroup], dict[str, Any]]:
    """The judge on the base model, its held-out groups, and what training told."""
    base_model, seed = params.base_model, (params.seed, "judge")
    roles = load_base(paths["base"], base_model.dtype, base_model.lora)
    window = roles.model.config.max_position_embeddings
    rows = read_rows(paths["rows"] / "train.jsonl", RmRow)
    told, held = split(rows, params.judge.validation_share, derive_seed(*seed, "validation"))
    model = new_reward_model(roles, params.judge.head, 1, *seed, kind="judge")
    validation = encode_groups(held, codec, window)
    groups = encode_groups(told, codec, window)
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


def opens(
    params: JudgeParams, paths: Paths, codec: Codec, judge: RewardModel, work: Path
) -> dict[str, Any]:
    """The gate's figures on the validation prompts, scores in sd over the judge's own answers."""
    base_model = params.base_model
    check_card(paths["rm"], {"base": paths["base"], "sft": paths["sft"]})
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, judge.roles)
    reward_model = load_reward_model(roles, paths["rm"])
    prompts = [codec.prompt_ids(row.question) for row in read_rows(paths["prompts"], PromptRow)]
    with roles.use(roles.reference) as sft:
        asked = sample(
            sft,
            prompts,
            GATE_OF,
            codec,
            base_model.max_answer_tokens,
            base_model.generate.batch_size,
            params.ppo.temperature,
            params.seed,
            "judge",
            "gate",
            checkpointer=Checkpointer(work / "gate"),
        )
    judged = judge.score(asked, codec).mean.view(-1, GATE_OF)
    seed = derive_seed(params.seed, "judge", "gate resamples")
    return gate(judged, best_of_n_indices(reward_model, asked, codec), params.judge.resamples, seed)


def run(params: JudgeParams, paths: Paths, work: Path) -> tuple[RewardModel, dict[str, Any]]:
    """Train, measure on the judge's own test questions, and try the gate."""
    codec = Codec(load_tokenizer(paths["base"]))
    judge, test, training = trained(params, paths, codec, work)
    assert judge.calibration is not None
    temperature = judge.calibration.temperature
    seed = derive_seed(params.seed, "judge", "resamples")
    block = report(scored(judge, test, codec), temperature, params.judge.resamples, seed)
    return judge, {
        **block,
        "temperature": temperature,
        "gate": {GATE: opens(params, paths, codec, judge, work)},
        "training": training,
    }


def folder_option(name: str) -> Any:
    """A required path option."""
    return click.option(f"--{name}", type=click.Path(path_type=Path), required=True)


@click.command(help=__doc__)
@folder_option("base")
@folder_option("sft")
@folder_option("rm")
@folder_option("rows")
@folder_option("prompts")
@folder_option("out")
@folder_option("metrics")
def main(out: Path, metrics: Path, **paths: Path) -> None:
    """Train the judge and try the gate."""
    clock = runtime.Clock()
    seconds = metrics.parent / "runtime" / metrics.name
    try:
        params = load(JudgeParams)
        runtime.start(params.threads, params.seed, "judge")

        def make(work: Path) -> None:
            judge, figures = run(params, paths, work)
            shutil.rmtree(out, ignore_errors=True)
            judge.save(out)
            save_card(out, "judge", {"base": paths["base"]})
            write_metrics(metrics, figures)
            clock.write(seconds)

        run_cached("judge", params, paths, [out, metrics, seconds], make)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
