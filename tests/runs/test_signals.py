"""A stage as a process of its own, asked to end by a signal: what it says, and how it goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from stages.rlhf import files
from stages.rlhf.ingest.tokenizer import train_tokenizer
from stages.rlhf.records import write_jsonl
from stages.rlhf.runs import checkpoints
from tests.conftest import ROOT, write_fingerprint, write_params
from tests.tokenizer_fixtures import SENTENCES

STEPS, VOCABULARY = 300, 380


def repository(folder: Path) -> Path:
    """All that stage base needs."""
    entry = "models.micro"
    folder.mkdir()
    changed = {f"{entry}.base.steps": STEPS, f"{entry}.architecture.vocab_size": VOCABULARY}
    write_params(folder, model="micro", threads=1, **changed)
    write_fingerprint(folder, "base")
    rows = folder / "rows"
    write_jsonl(rows / "corpus.jsonl", [{"text": f"{s} {i}"} for i in range(40) for s in SENTENCES])
    write_jsonl(rows / "reading.jsonl", [])
    train_tokenizer(SENTENCES, VOCABULARY, ()).save(str(rows / "tokenizer.json"))
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.base", "--rows", "rows", "--out", "data/base"]
    command += ["--metrics", "metrics/base.json", "--code", "data/check/base.json"]
    command += ["--model", "data/check/model.json"]
    environment = os.environ | {
        "KOQA_WORK": str(folder / "work"),
        "KOQA_CHECKPOINT_SECONDS": "1000",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)


def begun(folder: Path) -> list[object]:
    """The steps that a loop has begun at."""
    logs = (folder / "work").glob(f"base/*/{checkpoints.LOG}")
    lines = (line for file in logs for line in checkpoints.log_of(file.parent))
    return [line["from"] for line in lines if "from" in line]


def test_signals_save_the_step_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Ended twice, once by each signal, it comes to the bytes of a run that nobody ends."""
    whole, cut = (repository(tmp_path / name) for name in ("whole", "cut"))
    with start(whole) as process:
        assert process.wait(120) == 0
    stopped = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        starts = len(begun(cut))
        with start(cut) as process:
            end = time.monotonic() + 60
            while len(begun(cut)) == starts:
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert number.name in said
        (step,) = re.findall(r"^Error: .*step (\d+)", said.strip().splitlines()[-1])
        stopped.append(int(step))
        assert not (cut / "metrics" / "base.json").exists()
    with start(cut) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"step {stopped[-1]}" in said
    assert begun(cut) == stopped
    assert 0 < stopped[1] < stopped[2] < STEPS
    for name in files.files_of(whole / "data" / "base"):
        place = Path("data") / "base" / name
        assert (cut / place).read_bytes() == (whole / place).read_bytes(), name
