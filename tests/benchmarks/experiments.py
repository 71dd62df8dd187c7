"""Tables of experiments, each row a DVC experiment on the commit that stands: metrics/tables/*.csv.

    python -m tests.benchmarks.experiments rm_ablation --jobs 2    # or seeds, seeds_pooled,
                                                                   # control, rag, rivals

Queues what is missing and runs it beside the workspace, reads what each run has measured, and
writes that with the commit they were made at. Needs a clean checkout whose default run is in the
cache: `dvc repro` first; `rivals` and `seeds_pooled` need `seeds`.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.rlhf.config.base import MODELS
from stages.rlhf.plan.experiments import WORKSPACE, all_metrics, finished, value
from tests.benchmarks import rivals
from tests.benchmarks.rivals import ALL, ANSWERS, ENDS, KINDS, Cells
from tests.conftest import ROOT

EVALUATE, PPO, RM, JUDGE, GATE = "evaluate", "ppo", "rm", "judge", "gate"
INDEX = "index"

Columns = dict[str, tuple[str, str]]  # by name: stage, key
Experiments = Mapping[str, Mapping[str, Any]]  # rows of exp_show, by table row or by name
Read = Callable[[Experiments, Experiments], Mapping[str, Cells]]  # of this table, of all -> cells


@dataclass(frozen=True)
class Table:
    """Rows are named sets of changed params, none for the default run; `read` makes their cells."""

    targets: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Any]]
    read: Read


def metrics(columns: Columns) -> Read:
    """Cells that are metrics of each row."""

    def read(found: Experiments, done: Experiments) -> dict[str, Cells]:
        cells = {}
        stages = {stage for stage, _ in columns.values()}
        for name, row in tqdm(found.items(), desc="read metrics", unit="", delay=1, leave=False):
            measured = {stage: all_metrics(stage, row["rev"], ROOT) for stage in stages}
            cells[name] = {
                column: value(measured[stage], key) for column, (stage, key) in columns.items()
            }
        return cells

    return read


def read_rivals(found: Experiments, done: Experiments) -> Mapping[str, Cells]:
    """Cells that are measured here. Raises ValueError where table `seeds` has not been run."""
    slugs = {seed: slug("seeds", f"seed {seed}", SEEDS[f"seed {seed}"]) for seed in rivals.SEEDS}
    lost = [name for name in slugs.values() if name not in done]
    if lost:
        raise ValueError(f"{', '.join(lost)}: no such experiment; make table seeds first")
    taught = {seed: done[name]["rev"] for seed, name in slugs.items()}
    return rivals.read({name: row["rev"] for name, row in found.items()}, taught)


def read_pooled(found: Experiments, done: Experiments) -> Mapping[str, Cells]:
    """The seeds taken together. Raises ValueError where table `seeds` has not been run."""
    slugs = [slug("seeds", row, changed) for row, changed in SEEDS.items()]
    lost = [name for name in slugs if name not in done]
    if lost:
        raise ValueError(f"{', '.join(lost)}: no such experiment; make table seeds first")
    return rivals.pooled({seed: done[name]["rev"] for seed, name in enumerate(slugs)})


def ranking_columns() -> Columns:
    """What the reward model's rows are compared by."""
    found: Columns = {}
    for kind in KINDS:
        for key in ("accuracy", "accuracy_length_matched", "length_correlation_given_rank"):
            found[f"{kind}.{key}"] = RM, f"by_kind.{kind}.{key}"
        key = f"by_kind.{kind}.length_corrected.length_correlation_given_rank"
        found[f"{kind}.length_correlation_corrected"] = RM, key
    bias = "length_correlation_given_rank"
    found[bias] = RM, bias
    found["length_correlation_corrected"] = RM, f"length_corrected.{bias}"
    found["validation_accuracy"] = RM, "length_correction.validation_accuracy"
    found["ece"] = RM, "ece"
    found["judge_accuracy"] = JUDGE, "accuracy"
    found["gate_gain"] = GATE, "best_of_4.gain"
    found["gate_gain_ci_low"] = GATE, "best_of_4.gain_ci_low"
    return found


def answer_columns(*models: str) -> Columns:
    """What stage evaluate says of these models' answers."""
    found: Columns = {}
    for model in models:
        for place in (ALL, *KINDS):
            prefix = model if place == ALL else f"{model}.by_kind.{place}"
            found |= {f"{model}.{place}.{key}": (EVALUATE, f"{prefix}.{key}") for key in ANSWERS}
    return found


def verdict_columns() -> Columns:
    """PPO against SFT, and how PPO went."""
    keys = ["chrf_gain", "cosine_gain", "exact_gain", "contains_gain"]
    keys += ["win_rate", "win_rate_decided", "win_rate_length_controlled"]
    keys += ["chrf_win_rate_decided", "judge_agreement"]
    found: Columns = {}
    for place in (ALL, *KINDS):
        prefix = "ppo_vs_sft" if place == ALL else f"ppo_vs_sft.by_kind.{place}"
        for key in (f"{key}{end}" for key in keys for end in ENDS):
            found[f"ppo_vs_sft.{place}.{key}"] = EVALUATE, f"{prefix}.{key}"
        found[f"ppo_vs_sft.{place}.ties"] = EVALUATE, f"{prefix}.ties"
    found["questions"] = EVALUATE, "questions"
    gates = ("ppo_beats_sft", "no_repetition", "ends", "length_in_band", "rm_ok")
    found |= {f"gates.{gate}": (EVALUATE, f"gates.{gate}") for gate in gates}
    found |= {f"ppo.{key}": (PPO, key) for key in ("kl", "best_update", "skipped", "stopped")}
    return found


def gate_columns() -> Columns:
    """The reward model's accuracy, and the gate before PPO."""
    found: Columns = {f"rm.{kind}.accuracy": (RM, f"by_kind.{kind}.accuracy") for kind in KINDS}
    for key in ("gain", "gain_ci_low", "gain_ci_high", "passed"):
        found[f"gate.{key}"] = GATE, f"best_of_4.{key}"
    return found


def rag_columns() -> Columns:
    """Each model without passages, with them, and with the evidence gone; what the index finds.

    `checked` is PPO, its answers compared with the passages.
    """
    found: Columns = {}
    for condition in ("closed", "rag", "evidence_out"):
        checked = () if condition == "closed" else ("checked",)
        for model in ("base", "sft", "ppo", *checked):
            for kind in (ALL, *KINDS):
                prefix = f"rag.{condition}.{model}" + (f".by_kind.{kind}" if kind != ALL else "")
                for key in ("exact", "contains", "wrong_fact_rate", "supported", "declined"):
                    for end in ENDS:
                        name = f"{condition}.{model}.{kind}.{key}{end}"
                        found[name] = EVALUATE, f"{prefix}.{key}{end}"
    for model in ("sft", "ppo", "checked"):
        for key in (f"{key}{end}" for key in ("precision", "recall") for end in ENDS):
            found[f"refusal.{model}.{key}"] = EVALUATE, f"rag.refusal.{model}.{key}"
    for kind in KINDS:
        for key in ("hit@1", "hit@5", "mrr@10"):
            found[f"retrieval.{kind}.{key}"] = INDEX, f"retrieval.by_kind.{kind}.{key}"
    return found


def validation_columns() -> Columns:
    """What PPO's choice of an update saw, of SFT and of the update that was kept."""
    keys = ("chrf", "exact", "eos_rate", "repetition", "copy_rate", "length")
    found: Columns = {"ppo.skipped_reason": (PPO, "skipped_reason")}
    for side in ("sft", "best"):
        found |= {f"validation.{side}.{key}": (PPO, f"validation.{side}.{key}") for key in keys}
    return found


NO_DEBIASING = {"rm.odin_coef": 0.0, "rm.length_balance": False, "rm.length_correction": None}
TWO_MEMBERS = {"rm.members": 2, "ppo.uncertainty_coef": 0.1}
CONFOUNDED = {
    "sample.confounded": True,
    "rm.head": "scalar",
    "rm.hard_negatives": 0.0,
    "rm.slips": 0.0,
    "models.tiny.ppo.corpus_check": 0.0,
}
SEEDS = {f"seed {seed}": {"seed": seed} if seed else {} for seed in range(5)}
TABLES = {
    "rm_ablation": Table(
        ("gate",),
        {
            "default": {},
            "seed 1": {"seed": 1},
            "seed 2": {"seed": 2},
            "pairs for groups": {"rm.elements": "pairs", "rm.loss": "bradley_terry"},
            "bradley_terry": {"rm.loss": "bradley_terry"},
            "scalar head": {"rm.head": "scalar"},
            "no debiasing": NO_DEBIASING,
            "2 members": TWO_MEMBERS,
            "3 members": {**TWO_MEMBERS, "rm.members": 3},
            "no hard negatives": {"rm.hard_negatives": 0.0, "rm.slips": 0.0},
            "no slips": {"rm.slips": 0.0},
        },
        metrics(ranking_columns()),
    ),
    "seeds": Table(
        ("evaluate",),
        SEEDS,
        metrics(
            answer_columns("base", "sft", "ppo", "best_of_n") | verdict_columns() | gate_columns()
        ),
    ),
    "seeds_pooled": Table(("evaluate",), {}, read_pooled),
    "rivals": Table(("sft",), rivals.rows(), read_rivals),
    "rag": Table(
        ("evaluate",),
        {name: {"rag.enabled": True, **SEEDS[name]} for name in ("seed 0", "seed 1", "seed 2")},
        metrics(rag_columns()),
    ),
    "control": Table(
        ("evaluate",),
        {"default": {}, "confounded": {**CONFOUNDED, **NO_DEBIASING}},
        metrics(
            answer_columns("sft", "ppo", "best_of_n")
            | verdict_columns()
            | gate_columns()
            | validation_columns()
        ),
    ),
}


def slug(table: str, row: str, changed: Mapping[str, Any]) -> str:
    """The experiment's name; a row that changes nothing is the default run."""
    return f"{table}-{row}".replace(" ", "-").replace("_", "-") if changed else "default"


def experiments() -> dict[str, dict[str, Any]]:
    """Every finished experiment on HEAD, and HEAD itself, by name."""
    found = {}
    for row in finished(ROOT):
        if row["typ"] != WORKSPACE:
            found["default" if row["typ"] == "baseline" else row["Experiment"]] = row
    return found


def dvc_command(*words: str, jobs: int = 1) -> str:
    """Output of `dvc` with these words. Raises CalledProcessError where it fails.

    Several `jobs` share the cores: a thread of theirs that waits gives its core away, which doubles
    the time of the base stage where it runs alone.
    """
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE" if jobs > 1 else "ACTIVE"}
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return done.stdout


def queue(name: str, table: Table, changed: Mapping[str, Any]) -> None:
    """Put one experiment in the queue."""
    named = {f"{MODELS}:{k}" if k.startswith("models.") else k: v for k, v in changed.items()}
    words = [f"{key}={'null' if value is None else value}" for key, value in named.items()]
    settings = [word for pair in words for word in ("-S", pair)]
    dvc_command("exp", "run", "--queue", "-n", name, *settings, *table.targets)


def wait() -> None:
    """Return when the queue has nothing to do."""
    while any(state in dvc_command("queue", "status") for state in ("Queued", "Running")):
        time.sleep(20)


def run(name: str, table: Table, jobs: int) -> tuple[Experiments, Experiments]:
    """Run what is missing of a table; its experiments by row, and all by name."""
    slugs = {row: slug(name, row, changed) for row, changed in table.rows.items()}
    done = experiments()
    missing = [row for row in table.rows if slugs[row] not in done]
    for row in missing:
        queue(slugs[row], table, table.rows[row])
    if missing:
        dvc_command("queue", "start", "--jobs", str(jobs), jobs=jobs)
        wait()
        done = experiments()
    lost = [row for row in table.rows if slugs[row] not in done]
    if lost:
        raise SystemExit(f"failed: {', '.join(lost)}; see dvc queue status and dvc queue logs")
    return {row: done[slugs[row]] for row in table.rows}, done


def write(file: Path, table: Table, commit: str, cells: Mapping[str, Cells]) -> None:
    """One line per row of `cells`, with what the row changes."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "commit", "changed", *next(iter(cells.values()))])
        for row, found in cells.items():
            changed = " ".join(f"{k}={v}" for k, v in table.rows.get(row, {}).items())
            plain = [f"{c:.6g}" if isinstance(c, float) else c for c in found.values()]
            writer.writerow([row, commit, changed, *plain])


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    name, table = given.table, TABLES[given.table]
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    found, done = run(name, table, given.jobs)
    file = ROOT / "metrics" / "tables" / f"{name}.csv"
    write(file, table, head.stdout.decode().strip(), table.read(found, done))


if __name__ == "__main__":
    main()
