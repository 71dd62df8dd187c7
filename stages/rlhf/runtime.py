"""Setup of every torch stage: threads, determinism, seeds, timing."""

import hashlib
import os
import resource
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from stages.rlhf.records import write_metrics

CODE = ("stages", "params.yaml")
PROCESSES = "KOQA_PROCESSES"  # on this machine; default 1


def derive_seed(*parts: object) -> int:
    """A 63-bit seed derived from the global seed and the names of its use; one stream per use."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def processes() -> int:
    """How many processes a stage starts on this machine. Raises ValueError for no such number."""
    given = os.environ.get(PROCESSES, "1")
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{PROCESSES} is {given!r}; expected a number of processes, 1 or more")
    return int(given)


def start(threads: int, seed: int, use: str) -> None:
    """Fix threads, algorithms and global seeds, so that a commit reproduces bit for bit.

    Several processes on one machine share its `threads`.
    """
    torch.set_num_threads(max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else every CUDA matmul raises
    # CUDA's cumsum (tokens.pick) has no deterministic version: warn only
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # else every torch.empty is filled with NaN first: a quarter of SFT's time on a CPU
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # on a GPU: float32 products without TF32, and bfloat16 ones summed in float32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    transformers.set_seed(derive_seed(seed, use) % 2**32)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def circumstances(started: datetime, **more: Any) -> dict[str, Any]:
    """When, from which commit and on what device a stage ran: all that run.json leaves out."""

    def git(*command: str) -> str | None:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout.strip()

    cuda = torch.cuda.is_available()
    return {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_code": bool(git("status", "--porcelain", "--", *CODE)),
        "processes": processes(),
        "device": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        **more,
    }


class Clock:
    """Seconds per phase and peak memory of the process: numbers that dvc.lock must not hash."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._last = self._start
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def write(self, path: Path, **more: float) -> None:
        """Write `<phase>_s`, `total_s`, `peak_memory_mib` and `more`."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = {f"{phase}_s": seconds for phase, seconds in self.seconds.items()}
        total = time.perf_counter() - self._start
        write_metrics(path, {**figures, "total_s": total, "peak_memory_mib": peak, **more})
