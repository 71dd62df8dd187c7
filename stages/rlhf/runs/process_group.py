"""Processes that train as one: each holds the whole batch and works on its shard of it.

What the shards come to (gradients, scores, responses) is summed, so that one process and several
see the same batch, take the same steps and hold the same weights. Started by torchrun, or alone.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

TIMEOUT = "KOQA_PROCESS_TIMEOUT"  # seconds that a process waits for the others
WAIT = "1800"  # by default
Row = TypeVar("Row")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among all, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def init(cls) -> Self:
        """The group that torchrun's environment describes, a GPU each where there are any.

        Raises ValueError where there are fewer GPUs than processes.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        local_rank = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()}"
                    " are visible; start at most as many processes"
                )
            torch.cuda.set_device(local_rank)
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            wait = timedelta(seconds=float(os.environ.get(TIMEOUT, WAIT)))
            distributed.init_process_group(backend, timeout=wait)
        return cls(distributed.get_rank(), size, local_rank)

    def destroy(self) -> None:
        """End the process group, once all are here; nothing where it has ended."""
        if self.size > 1 and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files: one on each machine does."""
        return self.local_rank == 0

    def shard(self, rows: Sequence[Row]) -> list[Row]:
        """This process's part of the rows."""
        return list(rows[self.rank :: self.size])

    def check_rows(self, rows: int, what: str) -> None:
        """Raises ValueError where the `rows` of an optimiser step, `what`, are too few for all."""
        if rows < self.size:
            raise ValueError(
                f"{what} ({rows}) leaves some of {self.size} processes without a row; expected at"
                f" least one each: start at most {rows} processes"
            )

    def check_same(self, digest: str, what: str) -> None:
        """Raises ValueError where `what`, of which this is the sha256 in hex, differs."""
        if self.size == 1:
            return
        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.int64)
        mains = own.clone()
        distributed.broadcast(mains, 0)
        differs = not mains.equal(own)
        if self.any(differs):
            first = f"{bytes(mains.tolist()).hex()} in process 0"
            raise ValueError(
                f"process {self.rank} of {self.size}: {what} {digest} here, and"
                f" {first if differs else 'not in another'}; expected the same in all of them"
            )

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each of the tensors, of one dtype, over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def concatenate(self, own: Sequence[Tensor], device: Any) -> tuple[Tensor, slice]:
        """Float tensors (n,) of each process -> (N,) of all, and where this one's are."""
        if self.size == 1:
            return torch.cat(list(own)), slice(None)
        mine = torch.cat(list(own)) if own else torch.zeros(0, device=device)
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(mine)
        self.sum([counts])
        start = int(counts[: self.rank].sum())
        span = slice(start, start + len(mine))
        whole = mine.new_zeros(int(counts.sum()))
        whole[span] = mine
        self.sum([whole])
        return whole, span

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients; a process whose shard was empty has none yet, and adds 0."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.sum(gradients)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """For each of the flags, whether it is set in any of the processes."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor([float(flag) for flag in flags])
        self.sum([found])
        return [bool(count) for count in found.tolist()]

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor([number])
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
        return int(found.item())

    def broadcast(self, figures: dict[str, float]) -> dict[str, float]:
        """The first process's figures: last digits may differ from processor to processor."""
        if self.size == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        distributed.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work of all: that another process has ended is a ValueError, in one sentence."""
        try:
            yield
        except RuntimeError as error:
            known = isinstance(error, distributed.DistError) or "gloo" in str(error)
            if self.size == 1 or not known:
                raise
            raise ValueError(
                f"process {self.rank} of {self.size} lost another one; what was saved stays, and"
                " the same command resumes from there, with as many processes or others"
            ) from error


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
        padded = [ids + [0] * (longest - len(ids)) for ids in own]
        ids = torch.tensor(padded, dtype=torch.int64).view(len(own), longest)
        lengths = torch.tensor([len(ids) for ids in own], dtype=torch.int64)
        whole = zip(self.gather(ids).tolist(), self.gather(lengths).tolist(), strict=True)
        return [ids[:length] for ids, length in whole]
