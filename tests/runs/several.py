"""One of several processes at one of the loops; torchrun starts it for test_parallel.py.

python -m tests.runs.several LOOP FOLDER [DIES_AT]      # the second process, at the end of a step
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.cli.options import one_sentence_errors
from stages.rlhf.runs import sharding, signals
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.train.sft_trainer import ManifestCallback
from tests.runs.loops import RUNS, Result


def dies_at(step: int) -> None:
    """SIGKILL for this process at the end of its step of that number."""
    done: list[int] = []

    def counted(inner: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            done.append(0)
            if len(done) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*given, **named)

        return call

    for owner, name in ((Checkpointer, "maybe_save"), (ManifestCallback, "on_step_end")):
        setattr(owner, name, counted(getattr(owner, name)))


def work(loop: str, folder: Path, group: ProcessGroup) -> tuple[Result, dict[str, torch.Tensor]]:
    """Plain values and tensors that the loop comes to."""
    found = RUNS[loop](folder, group)
    tensors = {k: v.contiguous().clone() for k, v in found.items() if isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in found.items() if k not in tensors}
    if loop.startswith("sft"):
        plain = {"figures": plain["figures"]}
        for file in sorted((folder / "sft").glob("*.safetensors")):
            tensors |= load_file(file)
    return plain, tensors


def main(loop: str, folder: str, step: int = 0) -> None:
    torch.set_num_threads(1)
    group = ProcessGroup.init()
    if step and group.rank == 1:
        dies_at(step)
    spread, shard = [], sharding.shard

    def counted(*given: Any) -> None:
        shard(*given)
        spread.append(given)

    sharding.shard = counted
    with one_sentence_errors(), signals.catch_signals(), group.together():
        plain, tensors = work(loop, Path(folder), group)
        assert bool(spread) is sharding.wanted()
        (Path(folder) / f"{group.rank}.json").write_text(json.dumps(plain))
        save_file(tensors, Path(folder) / f"{group.rank}.safetensors")
        group.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
