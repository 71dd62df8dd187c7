"""Processes that train as one: each holds the whole rollout and works on its shard of it.

Responses, scores and gradients of the shards are summed, so that one process and several see the
same rollout, take the same steps and hold the same weights. Started by torchrun, or alone.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, distributed

from stages.rlhf.runs import signals


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def init(cls) -> Self:
        """The group that torchrun's environment describes, a GPU each where there are any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend)
        return cls(distributed.get_rank(), size)

    def destroy(self) -> None:
        """End the process group, once all are here."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def shard(self, rows: list[int]) -> list[int]:
        """This process's part of the rows."""
        return rows[self.rank :: self.size]

    def check_rows(self, rows: int) -> None:
        """Raises ValueError where an optimiser step's rows do not give each process one."""
        if rows < self.size:
            raise ValueError(
                f"ppo.batch_size / ppo.minibatches ({rows}) leaves some of {self.size} processes"
                " without a response; expected at least one each"
            )

    def sum(self, tensors: list[Tensor]) -> None:
        """Add up each of the tensors, of one dtype, over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        if self.size == 1:
            return flag
        found = torch.tensor([float(flag)])
        distributed.all_reduce(found)
        return bool(found.item())

    def broadcast(self, figures: dict[str, float]) -> dict[str, float]:
        """The main process's figures: last digits may differ from processor to processor."""
        if self.size == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        distributed.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class BatchShard:
    """This process's rows of a batch of B, and the way back to the whole batch."""

    group: ProcessGroup
    minibatches: list[list[int]]  # this process's rows of each
    size: int  # B

    @classmethod
    def of(cls, group: ProcessGroup, minibatches: list[list[int]]) -> Self:
        """The shard of a batch whose optimiser steps take these rows."""
        return cls(group, [group.shard(rows) for rows in minibatches], sum(map(len, minibatches)))

    @property
    def rows(self) -> list[int]:
        """All rows of this process."""
        return [row for rows in self.minibatches for row in rows]

    def gather(self, own: Tensor) -> Tensor:
        """(b, ...) values of this process's rows -> (B, ...) of everyone's."""
        whole = own.new_zeros(self.size, *own.shape[1:])
        whole[self.rows] = own
        self.group.sum([whole])
        return whole

    def gather_ids(self, own: list[list[int]], longest: int) -> list[list[int]]:
        """b lists of at most `longest` token ids -> everyone's B lists."""
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in own])
        lengths = torch.tensor([len(ids) for ids in own])
        whole = zip(self.gather(padded).tolist(), self.gather(lengths).tolist(), strict=True)
        return [ids[:length] for ids, length in whole]


def launch(module: str, processes: int) -> None:
    """Run this process's command as so many processes under torchrun, and pass signals on.

    Raises ValueError where one fails, Interrupted where a stop was requested.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", module, *sys.argv[1:]]
    with subprocess.Popen(command) as agent:
        terminated = False
        while agent.poll() is None:
            if signals.stop_requested() and not terminated:
                agent.terminate()
                terminated = True
            time.sleep(0.2)
    code = agent.returncode
    if code and terminated:
        raise signals.Interrupted(f"with {processes} processes, after the last saved update")
    if code:
        raise ValueError(f"one of {processes} processes ended with {code}; its message is above")
