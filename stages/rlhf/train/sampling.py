"""The order of SFT's training rows: random batches, each sorted by length; and whose they are.

What a micro-batch pads is then little, and a step is that of the same rows in any order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from stages.rlhf.runs.process_group import ProcessGroup


class SortedBatches(Sampler[int]):
    """Indices of N rows, shuffled anew in each epoch, shortest first within every batch.

    An epoch's order is of its number and the seed alone: a run resumed within it goes on as it was.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """lengths: (N,) tokens. batch_size: rows of an optimiser step."""
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        """N."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Each index once."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=self.lengths.__getitem__)


class ShardCollator:
    """This process's rows of each micro-batch, collated; all processes are handed all of them.

    Where there are fewer rows than processes, the first one without its labels: a loss of nothing.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any], group: ProcessGroup) -> None:
        self.collate, self.group = collate, group

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """The collated shard."""
        mute = {**rows[0], "labels": [-100] * len(rows[0]["input_ids"])}
        return self.collate(self.group.shard(rows) or [mute])
