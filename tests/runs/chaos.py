"""Kill the pipeline at random moments, go on, and compare with a run that nobody killed.

python -m tests.runs.chaos [--kills 30] [--seed 0]

The micro model, under `dvc repro`, `dvc exp run` and the queue by turns; every kill is SIGKILL to
all processes at once, half of them while a checkpoint is being written.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from stages.rlhf.runs.cache import LOCK, locked
from stages.rlhf.runs.checkpoints import LOG, log_of
from tests import conftest
from tests.conftest import copy_repository

STAGES = ("base", "sft", "rm", "judge", "gate", "ppo", "evaluate")  # those that go on
DVC = (sys.executable, "-m", "dvc")
DRIVERS = ("dvc repro", "dvc exp run", "the queue")
PATIENCE = 600  # seconds for anything at all
SMALL = {**conftest.SMALL, "ppo.evaluate_every": 2}


@dataclass
class Report:
    """What was done to the run, and what came of it."""

    kills: list[dict[str, object]] = field(default_factory=list)
    went_on: int = 0  # loops that began at a checkpoint
    from_zero: list[str] = field(default_factory=list)  # that had one, and did not
    same_lock: bool = True
    seconds: float = 0.0


def repository(folder: Path) -> Path:
    """A repository of its own with small params, in which nothing has run."""
    folder.mkdir(parents=True)
    return copy_repository(folder, without=("metrics/", "plots/", "dvc.lock"), **SMALL)


def environment(folder: Path, seconds: str) -> dict[str, str]:
    """Of all processes: work beside the repository, a checkpoint as often as can be."""
    given = {k: v for k, v in os.environ.items() if k not in ("KOQA_WORK", "PYTHONPATH")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{given['PATH']}"
    return given | {
        "KOQA_CHECKPOINT_SECONDS": seconds,
        "KOQA_CHAOS": str(folder),  # by which our processes are known
        "GIT_AUTHOR_NAME": "koqa", "GIT_AUTHOR_EMAIL": "koqa@example.org",
        "GIT_COMMITTER_NAME": "koqa", "GIT_COMMITTER_EMAIL": "koqa@example.org",
        "PATH": path,
    }  # fmt: skip


def ours(folder: Path) -> Iterator[psutil.Process]:
    """All processes that were started for this repository."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("KOQA_CHAOS") == str(folder):
                yield process
        except psutil.Error:
            continue


def kill_all(folder: Path) -> int:
    """SIGKILL to all of them, until none is left."""
    count = 0
    while found := [p for p in ours(folder) if p.status() != psutil.STATUS_ZOMBIE]:
        for process in found:
            try:
                process.kill()
                count += 1
            except psutil.Error:
                continue
        time.sleep(0.05)
    return count


def run(folder: Path, *command: str, seconds: str = "0") -> int:
    """A command to its end; its exit code."""
    with (folder.parent / "log.txt").open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        return subprocess.run(
            command, cwd=folder, env=environment(folder, seconds), stdout=out, stderr=out,
            timeout=PATIENCE,
        ).returncode  # fmt: skip


def begin(folder: Path, driver: str) -> None:
    """Start the pipeline in the background."""
    commands = {
        "dvc repro": [[*DVC, "repro"]],
        "dvc exp run": [[*DVC, "exp", "run", "-n", f"chaos{time.time():.0f}"]],
        "the queue": [
            [*DVC, "queue", "remove", "--all"],
            [*DVC, "exp", "run", "--queue", "-n", f"queued{time.time():.0f}"],
            [*DVC, "queue", "start"],
        ],
    }[driver]
    *before, last = commands
    for command in before:
        run(folder, *command)
    with (folder.parent / "log.txt").open("a") as out:
        out.write(f"$ {' '.join(last)} &\n")
        out.flush()
        subprocess.Popen(
            last, cwd=folder, env=environment(folder, "0"), stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    time.sleep(1)  # until it has its environment


def works(folder: Path, stage: str) -> bool:
    """Whether a process is at work on this stage."""
    for lock in (folder / ".work" / stage).glob(f"*/{LOCK}"):
        try:
            with locked(lock.parent, wait=False):
                continue
        except BlockingIOError:
            return True
    return False


def wait_for(folder: Path, stage: str) -> bool:
    """Wait until the stage is at work; False where all processes ended before."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if works(folder, stage):
            return True
        if not any(True for _ in ours(folder)):
            return False
        time.sleep(0.1)
    raise TimeoutError(f"{stage} did not begin within {PATIENCE} s")


def strike(folder: Path, rng: random.Random, length: float, writing: bool) -> bool:
    """Kill everything at a random moment of a stage; whether a checkpoint was half written."""
    before = drafts(folder)  # of earlier kills
    time.sleep(rng.uniform(0, length))
    end = time.monotonic() + 5
    while writing and time.monotonic() < end and drafts(folder) <= before:
        pass
    kill_all(folder)
    return not drafts(folder) <= before


def drafts(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints and copies of results that have no name yet, each with when it was begun."""
    found = set()
    for pattern in ("*/*/*.tmp", "*/*/*/*.tmp"):
        with suppress(FileNotFoundError):  # one of them was just named
            for path in (folder / ".work").glob(pattern):
                found.add((str(path), path.stat().st_ctime_ns))
    return found


def judged(folder: Path, report: Report) -> None:
    """Read from the logs whether a loop that had a checkpoint began at zero."""
    for log in sorted((folder / ".work").glob(f"*/*/{LOG}")):
        saved: dict[str, int] = {}
        for told in log_of(log.parent):
            if "saved" in told:
                saved[told["checkpointer"]] = told["saved"]
            elif told["from"] > 0:
                report.went_on += 1
            elif told["checkpointer"] in saved:
                report.from_zero.append(
                    f"{log}: {told['checkpointer']} had step {saved[told['checkpointer']]}"
                )


def uncut(folder: Path) -> Path:
    """A repository in which the whole pipeline has run, and nothing was killed."""
    whole = repository(folder)
    assert run(whole, *DVC, "repro", seconds="30") == 0, whole.parent / "log.txt"
    return whole


def chaos(folder: Path, whole: Path, kills: int, seed: int) -> Report:
    """Rounds of a kill in each stage, every round in a repository of its own below `folder`.

    What each comes to is compared with `whole`, of which nothing is changed.
    """
    report, rng, started = Report(), random.Random(seed), time.monotonic()
    cuts = [repository(folder / f"round{i}" / "cut") for i in range(-(-kills // len(STAGES)))]
    lengths = {
        stage: json.loads((whole / "metrics" / "runtime" / f"{stage}.json").read_text())["total_s"]
        for stage in STAGES
    }
    lock = (whole / "dvc.lock").read_bytes()
    for number in range(kills):
        cut, stage = cuts[number // len(STAGES)], STAGES[number % len(STAGES)]
        driver = DRIVERS[(number + number // len(STAGES)) % len(DRIVERS)]
        begin(cut, driver)
        if not wait_for(cut, stage):
            raise RuntimeError(f"{stage} never began; see {cut.parent / 'log.txt'}")
        half = strike(cut, rng, lengths[stage], number % 2 == 1)
        report.kills.append({"stage": stage, "under": driver, "half_written": half})
        print(json.dumps(report.kills[-1]), flush=True)
        if stage == STAGES[-1] or number == kills - 1:
            assert run(cut, *DVC, "repro") == 0, cut.parent / "log.txt"
            assert run(cut, *DVC, "status", "--quiet") == 0, cut.parent / "log.txt"
            judged(cut, report)
            report.same_lock &= (cut / "dvc.lock").read_bytes() == lock
    report.seconds = time.monotonic() - started
    return report


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="koqa-chaos-") as folder:
        print(folder)
        whole = uncut(Path(folder) / "whole" / "whole")
        report = chaos(Path(folder), whole, given.kills, given.seed)
    print(f"{len(report.kills)} kills, {report.went_on} loops went on from a checkpoint,")
    print(f"{len(report.from_zero)} from zero though they had one: {report.from_zero}")
    print(f"dvc.lock is {'the same' if report.same_lock else 'ANOTHER'}; {report.seconds:.0f} s")


if __name__ == "__main__":
    main()
