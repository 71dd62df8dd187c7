"""Memory and time where the work is done: on the GPU, if there is one, else in this process."""

import torch

from tests.benchmarks.process_memory import memory


def held() -> float:
    """MiB now: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    return memory("VmRSS")


def most() -> float:
    """MiB at most: of the GPU since `held`, else of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return memory("VmHWM")


def seconds_are_over() -> None:
    """Wait for the GPU, so that a clock read next is of work that is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
