"""Stage evaluate under load: seconds and peak memory by the number of test questions.

    python -m tests.benchmarks.evaluate_load    # 250 and 1,000 questions; --questions 250 4000

Needs the default run's models (`dvc repro` or `dvc pull`) and a quiet machine. The whole stage runs
as `dvc.yaml` says, threads as in `params.yaml`, with its outputs in a temporary folder: base, SFT
and PPO answer greedily, SFT best_of times more by sampling, all are scored, measured and drawn. The
sample has 750 test questions; beyond that its rows are repeated under other ids. Each number of
questions has a process of its own. Memory that grows is that of the process's peak, beside what one
question's answers weigh in `samples.jsonl`.

On a CPU, oneDNN keeps a kernel for each of the last 1,024 shapes of a product, and more questions
meet more shapes: with ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 set, which is slower, they are not kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages import evaluate
from stages.rlhf.records import read_jsonl, write_jsonl
from tests.benchmarks.process_memory import memory
from tests.conftest import ROOT

ROWS = ROOT / "data" / "preprocess" / "sft" / "test.jsonl"
QUESTIONS = (250, 1000)
PLACES = {
    "code": "data/check/evaluate.json",
    "base": "data/base",
    "sft": "data/sft",
    "ppo": "data/ppo/best",
    "rm": "data/rm",
    "judge": "data/judge",
    "gate": "metrics/gate.json",
    "embedder": "data/embedder",
    "metrics-dir": "metrics",
    "plots-dir": "plots",
}


def rows(count: int) -> list[dict[str, Any]]:
    """The first `count` test rows; once all are used up, from the first again, by other ids."""
    found = list(read_jsonl(ROWS))
    return [
        {**found[i % len(found)], "id": f"{found[i % len(found)]['id']}-{i // len(found)}"}
        for i in range(count)
    ]


def measure(folder: Path) -> dict[str, float]:
    """The stage alone in this process, on the rows in `folder`: its seconds by phase, its peak."""
    out = {"rows": "rows.jsonl", "out": "out", "metrics": "metrics.json", "plots": "plots"}
    places = {**PLACES, **{name: str(folder / place) for name, place in out.items()}}
    words = [word for name, place in places.items() for word in (f"--{name}", place)]
    evaluate.main(words, standalone_mode=False)
    clock = json.loads((folder / "runtime" / "metrics.json").read_text(encoding="utf-8"))
    samples = (folder / "out" / "samples.jsonl").stat().st_size
    return clock | {"peak_mib": memory("VmHWM"), "samples_kib": samples / 2**10}


def in_a_process(questions: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "rows.jsonl", rows(questions))
        command = [sys.executable, "-m", "tests.benchmarks.evaluate_load", "--folder", folder]
        env = {**os.environ, "KOQA_WORK": f"{folder}/work"}  # nothing is restored
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=env)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the figures of each number of questions, and how they grow from one to the next."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, nargs="+", default=QUESTIONS)
    parser.add_argument("--folder", type=Path, help="used by this itself")
    given = parser.parse_args()
    if given.folder:
        print(json.dumps(measure(given.folder)))
        return
    before: tuple[int, dict[str, float]] | None = None
    for questions in given.questions:
        found = in_a_process(questions)
        phases = ", ".join(f"{k[:-2]} {v:.1f}" for k, v in found.items() if k.endswith("_s"))
        print(f"{questions:5d} questions: seconds {phases}; peak {found['peak_mib']:.0f} MiB")
        if before is not None:
            more = questions - before[0]
            grown = {k: (found[k] - before[1][k]) / more for k in ("total_s", "peak_mib")}
            written = (found["samples_kib"] - before[1]["samples_kib"]) / more
            print(f"  a question more: {1000 * grown['total_s']:.0f} ms,", end=" ")
            print(f"peak {1024 * grown['peak_mib']:.1f} KiB; samples.jsonl {written:.1f} KiB")
        before = questions, found


if __name__ == "__main__":
    main()
