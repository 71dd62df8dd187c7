"""Tables of experiments, each row a DVC experiment on the commit that stands: metrics/tables/*.csv.

    python -m tests.benchmarks.experiments rm_ablation --jobs 2

Queues what is missing and runs it beside the workspace, reads the figures back with
`dvc.api.exp_show()`, and writes them with the commit they were made at. Needs a clean checkout
whose default run is in the cache: `dvc repro` first.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api

ROOT = Path(__file__).parents[2]
KINDS = ("unseen_wording", "never_asked", "unseen_ending")


@dataclass(frozen=True)
class Table:
    """Rows are named sets of changed params; columns are (file, key) of metrics, by name."""

    targets: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, tuple[str, str]]


def ranking_columns() -> dict[str, tuple[str, str]]:
    """What the reward model's rows are compared by."""
    found = {}
    for kind in KINDS:
        for key in ("accuracy", "accuracy_length_matched", "length_correlation_given_rank"):
            found[f"{kind}.{key}"] = "metrics/rm.json", f"by_kind.{kind}.{key}"
        key = f"by_kind.{kind}.length_corrected.length_correlation_given_rank"
        found[f"{kind}.length_correlation_corrected"] = "metrics/rm.json", key
    bias = "length_correlation_given_rank"
    found[bias] = "metrics/rm.json", bias
    found["length_correlation_corrected"] = "metrics/rm.json", f"length_corrected.{bias}"
    found["validation_accuracy"] = "metrics/rm.json", "length_correction.validation_accuracy"
    found["ece"] = "metrics/rm.json", "ece"
    found["judge_accuracy"] = "metrics/judge.json", "accuracy"
    found["gate_gain"] = "metrics/judge.json", "gate.best_of_4.gain"
    found["gate_gain_ci_low"] = "metrics/judge.json", "gate.best_of_4.gain_ci_low"
    return found


NO_DEBIASING = {"rm.odin_coef": 0.0, "rm.length_balance": False, "rm.length_correction": None}
ONE_MEMBER = {"rm.members": 1, "ppo.uncertainty_coef": 0.0}
TABLES = {
    "rm_ablation": Table(
        ("rm", "judge"),
        {
            "default": {},
            "seed 1": {"seed": 1},
            "seed 2": {"seed": 2},
            "pairs for groups": {"rm.elements": "pairs", "rm.loss": "bradley_terry"},
            "bradley_terry": {"rm.loss": "bradley_terry"},
            "scalar head": {"rm.head": "scalar"},
            "no debiasing": NO_DEBIASING,
            "1 member": ONE_MEMBER,
            "3 members": {"rm.members": 3},
            "no hard negatives": {"rm.hard_negatives": 0.0},
        },
        ranking_columns(),
    )
}


def experiments() -> dict[str, dict[str, Any]]:
    """Every finished experiment on HEAD, and HEAD itself, by name."""
    found = {}
    for row in dvc.api.exp_show(str(ROOT)):
        if row["State"] in (None, "Success") and row["typ"] != "workspace":
            found["default" if row["typ"] == "baseline" else row["Experiment"]] = row
    return found


def dvc_command(*words: str) -> str:
    """Output of `dvc` with these words. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # two jobs share the cores
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return done.stdout


def queue(name: str, table: Table, changed: Mapping[str, Any]) -> None:
    """Put one experiment in the queue."""
    words = [f"{key}={'null' if value is None else value}" for key, value in changed.items()]
    settings = [word for pair in words for word in ("-S", pair)]
    dvc_command("exp", "run", "--queue", "-n", name, *settings, *table.targets)


def wait() -> None:
    """Return when the queue has nothing to do."""
    while any(state in dvc_command("queue", "status") for state in ("Queued", "Running")):
        time.sleep(20)


def value(row: Mapping[str, Any], file: str, key: str) -> Any:
    """A metric; exp_show names its file only where two files hold that key."""
    return row.get(f"{file}:{key}", row.get(key))


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
    commit = head.stdout.decode().strip()
    slugs = {row: f"{name}-{row}".replace(" ", "-").replace("_", "-") for row in table.rows}
    slugs["default"] = "default"
    done = experiments()
    missing = [row for row in table.rows if slugs[row] not in done]
    for row in missing:
        queue(slugs[row], table, table.rows[row])
    if missing:
        dvc_command("queue", "start", "--jobs", str(given.jobs))
        wait()
    found = experiments()
    lost = [row for row in table.rows if slugs[row] not in found]
    if lost:
        raise SystemExit(f"failed: {', '.join(lost)}; see dvc queue status and dvc queue logs")
    file = ROOT / "metrics" / "tables" / f"{name}.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "commit", "changed", *table.columns])
        for row, changed in table.rows.items():
            words = " ".join(f"{k}={v}" for k, v in changed.items())
            cells = [value(found[slugs[row]], *column) for column in table.columns.values()]
            writer.writerow([row, commit, words, *cells])


if __name__ == "__main__":
    main()
