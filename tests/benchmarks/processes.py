"""Two processes of one thread each against one process of one thread: stages sft, rm, base, ppo.

    python -m tests.benchmarks.processes              # sft and rm; --stages base ppo
    python -m tests.benchmarks.processes --rows 2000  # rows that a stage trains on

Needs the default run's data and a quiet machine of two cores. Sides run in turn, each the stage's
own command in a folder with copies of its inputs; a side's seconds are those the stage measured of
itself, loading included, so that short runs show less than long ones. Prints seconds and ratio.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from stages.rlhf.runtime import PROCESSES
from tests.conftest import ROOT, write_params

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
LONG = ("data/rows/sft/train.jsonl", "data/rows/rm/train.jsonl", "data/rows/ppo/train.jsonl")


def prepare(folder: Path, rows: int, threads: int) -> None:
    """Everything a stage reads, with the first `rows` rows to train on."""
    for name in ("data", "metrics", "plots", "stages", "dvc.yaml"):
        source, target = ROOT / name, folder / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)
    for name in LONG:
        lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:rows]), encoding="utf-8")
    write_params(folder, threads=threads, **{"models.tiny.ppo.updates": 4})


def seconds(folder: Path, stage: str, processes: int) -> float:
    """Of the stage, by so many processes, anew."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "KOQA_WORK": str(folder / f".work{processes}"),
        "OMP_WAIT_POLICY": "ACTIVE",
        PROCESSES: str(processes),
    }
    command = [sys.executable, *STAGES[stage]["cmd"].split()[1:]]
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    file = folder / "metrics" / "runtime" / f"{stage}.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["total_s"])


def main() -> None:
    """Each stage once by each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=["sft", "rm"])
    parser.add_argument("--rows", type=int, default=2000)
    given = parser.parse_args()
    for stage in given.stages:
        found = {}
        for processes in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                prepare(Path(folder), given.rows, threads=processes)
                found[processes] = seconds(Path(folder), stage, processes)
        ratio = found[1] / found[2]
        print(f"{stage}: one process {found[1]:.1f} s, two {found[2]:.1f} s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
