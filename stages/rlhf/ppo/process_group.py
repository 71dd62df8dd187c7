"""Processes that train as one: every one holds the whole rollout, and works on its share of it.

Answers, scores and gradients of the shares are summed, so that one process and several see the same
rollout, take the same steps, and hold the same weights. Started by torchrun, or alone.
"""

import os
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among all."""

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

    def sum(self, tensors: list[Tensor]) -> None:
        """Add up each of the tensors, of one dtype, over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, asked: bool) -> bool:
        """Whether it is so in any of the processes."""
        if self.size == 1:
            return asked
        found = torch.tensor([float(asked)])
        distributed.all_reduce(found)
        return bool(found.item())

    def broadcast(self, figures: dict[str, float]) -> dict[str, float]:
        """The main process's figures: last digits may differ from processor to processor."""
        if self.size == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        distributed.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))
