"""Stage `ppo`: the policy, taught by the reward model, kept near SFT.

python -m stages.ppo --code data/check/ppo.json --base data/base --sft data/sft --rm data/rm
    --judge data/judge --gate metrics/gate.json --prompts data/preprocess/ppo/train.jsonl
    --validation data/preprocess/sft/validation.jsonl
    --out data/ppo --metrics metrics/ppo.json --plots plots/ppo
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import pandas as pd

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.ppo import PpoParams
from stages.rlhf.measure.text import length
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer, save_card
from stages.rlhf.ppo.process_group import ProcessGroup
from stages.rlhf.ppo.selection import CheckpointSelector, Validator
from stages.rlhf.ppo.trainer import SINGLE_PROCESS, Outcome, PpoTrainer
from stages.rlhf.records import (
    PromptRow,
    SftRow,
    details_file,
    read_rows,
    runtime_file,
    write_stage_metrics,
)
from stages.rlhf.reward.gate import gate_failure
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs import signals
from stages.rlhf.runs.cache import run_cached
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

LAST_UPDATE = ("kl", "kl_coef", "score", "uncertainty", "penalty", "reward", "eos_rate", "entropy")
UPDATE_COLUMNS = ("update", "score", "kl", "length")  # of updates.csv, where there is no update


def trained(
    params: PpoParams, paths: Paths, work: Path, process_group: ProcessGroup = SINGLE_PROCESS
) -> tuple[PpoTrainer, Outcome, Validator]:
    """Load all roles on one backbone and train, or go on where a run was cut off."""
    base_model = params.base_model
    check_card(paths["rm"], {"base": paths["base"], "sft": paths["sft"]})
    check_card(paths["judge"], {"base": paths["base"]})
    bare = load_base(paths["base"], base_model.dtype, base_model.lora)
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, bare)
    codec = Codec(load_tokenizer(paths["base"]))
    rows = read_rows(paths["validation"], SftRow)
    if not rows:
        raise ValueError(f"{paths['validation']} is empty: no questions to choose an update by")
    reward_model = load_reward_model(roles, paths["rm"])
    trainer = PpoTrainer(
        roles,
        reward_model,
        codec,
        [row.question for row in read_rows(paths["prompts"], PromptRow)],
        params.ppo,
        base_model.ppo,
        base_model.max_answer_tokens,
        params.seed,
        work,
        process_group,
    )
    validator = Validator(
        roles,
        reward_model,
        load_reward_model(bare, paths["judge"]),
        codec,
        rows,
        base_model.max_answer_tokens,
        base_model.generate.batch_size,
        trainer.outcome.said,
    )
    chooser = CheckpointSelector(fmean(length(row.answer) for row in rows))
    closed = gate_failure(paths["gate"]) if params.ppo.require_gate else None
    if closed:
        outcome = trainer.skip_training(validator, chooser)
        outcome.stopped = closed
        return trainer, outcome, validator
    return trainer, trainer.train(validator, chooser, work / "updates"), validator


def save(trainer: PpoTrainer, out: Path, paths: Paths) -> None:
    """Write the adapters of the best and of the last update."""
    shutil.rmtree(out, ignore_errors=True)
    last = trainer.roles.state(POLICY)
    parents = {"base": paths["base"], "sft": paths["sft"], "rm": paths["rm"]}
    for name, state in {"last": last, "best": trainer.outcome.best_state}.items():
        trainer.roles.load_state(POLICY, state)
        trainer.roles.save(POLICY, out / name)
        save_card(out / name, "ppo", parents)


def summary(outcome: Outcome) -> dict[str, Any]:
    """metrics/ppo.json: the last update's rollout, and the kept update's validation figures."""
    last = outcome.updates[-1] if outcome.updates else {"update": 0}
    rows = {int(row["update"]): row for row in outcome.validation}
    figures = ("chrf", "exact", "eos_rate", "repetition", "copy_rate", "length")
    found: dict[str, Any] = {key: last.get(key) for key in LAST_UPDATE}
    found |= {f"{key}_reason": "no update was made" for key in LAST_UPDATE if key not in last}
    found |= {
        "updates": int(last["update"]),
        "best_update": outcome.best_update,
        "skipped": outcome.best_update == 0,
    }
    if outcome.best_update == 0:
        found["skipped_reason"] = "no update beats SFT" if outcome.updates else outcome.stopped
    return found | {
        "stopped": outcome.stopped,
        "bad_steps": outcome.bad_steps,
        "validation": {
            "sft": {key: rows[0][key] for key in figures},
            "best": {key: rows[outcome.best_update][key] for key in figures},
        },
    }


def write_curves(outcome: Outcome, validator: Validator, plots: Path) -> None:
    """plots/ppo: updates.csv, validation.csv, and samples.csv, a column per evaluation."""
    plots.mkdir(parents=True, exist_ok=True)
    evaluations = [int(row["update"]) for row in outcome.validation]
    tables = {
        "updates": pd.DataFrame(outcome.updates or {name: [] for name in UPDATE_COLUMNS}),
        "validation": pd.DataFrame(outcome.validation),
        "samples": pd.DataFrame(validator.table(evaluations)),
    }
    for name, table in tables.items():
        table.to_csv(plots / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


def speed(params: PpoParams, trainer: PpoTrainer) -> dict[str, float]:
    """Answers sampled, scored and learned from per second; nothing where there were none."""
    updates = len(trainer.outcome.updates)
    seconds = trainer.clock.seconds
    if not updates:
        return {}
    busy = sum(seconds[phase] for phase in ("generate", "score", "update"))
    return {"samples_per_second": params.base_model.ppo.batch_size * updates / busy}


def launch(processes: int) -> None:
    """Run this very command as one of so many processes, and hand them a wish to end.

    Raises ValueError where one fails, Interrupted where they were asked to end.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "stages.ppo", *sys.argv[1:]]
    with subprocess.Popen(command) as agent:
        told = False
        while agent.poll() is None:
            if signals.stop_requested() and not told:
                agent.terminate()
                told = True
            time.sleep(0.2)
    code = agent.returncode
    if code and told:
        raise signals.Interrupted(f"with {processes} processes, after the last saved update")
    if code:
        raise ValueError(f"one of {processes} processes ended with {code}; its message is above")


@click.command(help=__doc__)
@path_options(
    "code", "base", "sft", "rm", "judge", "gate", "prompts", "validation", "out", "metrics", "plots"
)
def main(code: Path, out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Train the policy with PPO."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(PpoParams)

        def make(work: Path) -> None:
            if params.ppo.processes > 1 and "RANK" not in os.environ:
                launch(params.ppo.processes)
                return
            runtime.start(params.threads, params.seed, "ppo")
            process_group = ProcessGroup.init()
            trainer, outcome, validator = trained(params, paths, work, process_group)
            process_group.destroy()
            if not process_group.is_main:
                return
            save(trainer, out, paths)
            shutil.rmtree(plots, ignore_errors=True)
            write_curves(outcome, validator, plots)
            figures = summary(outcome)
            write_stage_metrics(metrics, figures, HEADLINE)
            clock.seconds.update(trainer.clock.seconds)
            clock.write(seconds, **speed(params, trainer))
            if outcome.best_update == 0:
                click.echo(f"ppo: SFT's weights are the result: {figures['skipped_reason']}")

        outs = [out, plots, metrics, details_file(metrics), seconds]
        run_cached(Stage("ppo", params, code, paths), outs, make)


if __name__ == "__main__":
    main()
