"""Stage `ppo`: optimize the policy against the reward model, close to SFT.

python -m stages.ppo --code data/check/ppo.json --base data/base --sft data/sft --rm data/rm
    --judge data/judge --gate metrics/gate.json --prompts data/rows/ppo/train.jsonl
    --validation data/rows/sft/validation.jsonl --corpus data/preprocess/corpus.jsonl
    --index data/index
    --out data/ppo --metrics metrics/ppo.json --plots plots/ppo
"""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.ppo import PpoParams
from stages.rlhf.evidence.corpus_check import CorpusCheck
from stages.rlhf.evidence.evidence import Evidence
from stages.rlhf.measure.text import length
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer, save_card
from stages.rlhf.ppo import stats
from stages.rlhf.ppo.selection import decide
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.ppo.validation import Validator
from stages.rlhf.records import (
    PromptRow,
    SftRow,
    details_file,
    read_jsonl,
    read_rows,
    runtime_file,
    subset,
    write_stage_metrics,
)
from stages.rlhf.retrieval.support import Support
from stages.rlhf.reward.gate import gate_failure, read_gate
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.provenance import Stage

Paths = dict[str, Path]

HEADLINE = (
    "kl",
    "reward",
    "eos_rate",
    "best_update",
    "skipped",
    "validation.best.chrf",
    "validation.best.exact",
)


def trained(
    params: PpoParams, paths: Paths, work: Path, process_group: ProcessGroup = SINGLE_PROCESS
) -> tuple[PpoTrainer, Validator]:
    """Load all roles on one backbone and train, or resume a run that was cut off."""
    base_model, ppo = params.base_model, params.ppo
    check_card(paths["rm"], {"base": paths["base"], "sft": paths["sft"]})
    check_card(paths["judge"], {"base": paths["base"]})
    bare = load_base(paths["base"], base_model.dtype, base_model.lora)
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, bare)
    codec = Codec(load_tokenizer(paths["base"]))
    seed = runtime.derive_seed(params.seed, "validation")
    rows = subset(read_rows(paths["validation"], SftRow), params.validation_rows, seed)
    if not rows:
        raise ValueError(f"{paths['validation']} is empty: no questions to choose an update by")
    reward_model = load_reward_model(roles, paths["rm"])
    prompts = read_rows(paths["prompts"], PromptRow)
    limit = base_model.max_answer_tokens
    generation = base_model.generate
    scale = (ppo, base_model.ppo, limit, generation, params.seed, work, process_group)
    check = corpus_check(base_model.ppo.corpus_check, paths["corpus"])
    support = Support.load(paths["index"]) if any(row.passages for row in prompts) else None
    evidence = Evidence(check, support)
    trainer = PpoTrainer(roles, reward_model, codec, prompts, *scale, evidence=evidence)
    judge = load_reward_model(bare, paths["judge"], process_group)
    grader = replace(reward_model, group=process_group)
    validator = Validator(roles, grader, judge, codec, rows, limit, generation)
    rule = partial(
        decide,
        reference_length=fmean(length(row.answer) for row in rows),
        limits=params.limits,
        patience=ppo.patience,
        gate_failure=gate_failure(paths["gate"]) if ppo.require_gate else None,
    )
    trainer.train(validator, rule, work / "updates")
    return trainer, validator


def corpus_check(weight: float, corpus: Path) -> CorpusCheck | None:
    """What answers are checked by; None without a weight. Raises ValueError without a corpus."""
    if not weight:
        return None
    try:
        return CorpusCheck(row["text"] for row in read_jsonl(corpus))
    except ValueError as error:
        raise ValueError(
            f"{corpus}: {error}; expected a corpus, or ppo.corpus_check ({weight}) of the model's"
            " entry to be 0"
        ) from error


def save(trainer: PpoTrainer, out: Path, paths: Paths) -> None:
    """Write the adapters of the update that is kept, as `best`, and of the last one."""
    shutil.rmtree(out, ignore_errors=True)
    last = trainer.roles.state(POLICY)
    parents = {"base": paths["base"], "sft": paths["sft"], "rm": paths["rm"]}
    for name, state in {"last": last, "best": trainer.progress.kept_policy}.items():
        trainer.roles.load_state(POLICY, state)
        trainer.roles.save(POLICY, out / name)
        save_card(out / name, "ppo", parents)


@click.command(help=__doc__)
@path_options("code", "base", "sft", "rm", "judge", "gate", "prompts", "validation", "corpus")
@path_options("index", "out", "metrics", "plots")
def main(code: Path, out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Train the policy with PPO."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(PpoParams)

        runtime.start(params.threads, params.seed, "ppo")

        def make(work: Path, process_group: ProcessGroup) -> None:
            trainer, validator = trained(params, paths, work, process_group)
            if not process_group.is_main:
                return
            progress = trainer.progress
            save(trainer, out, paths)
            evaluations = [int(row["update"]) for row in progress.validation]
            stats.write_curves(progress, validator.table(evaluations, progress.shown), plots)
            write_stage_metrics(metrics, stats.summary(progress), HEADLINE)
            clock.seconds.update(trainer.clock.seconds)
            samples = params.base_model.ppo.batch_size * len(progress.updates)
            clock.write(seconds, **stats.speed(samples, clock.seconds))
            if progress.kept.update == 0:
                click.echo(f"ppo: SFT's weights are the result: {progress.kept.reason}")

        outs = [out, plots, metrics, details_file(metrics), seconds]
        run_parallel(Stage("ppo", params, code, paths), outs, make)
        if read_gate(paths["gate"]).passed is None:
            click.echo("ppo: nobody vouches for the reward model: the gate is unknown")


if __name__ == "__main__":
    main()
