"""The order of SFT's training rows: random batches, each sorted by length.

What a micro-batch pads is then little, and a step is that of the same rows in any order.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


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
