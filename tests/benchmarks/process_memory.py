"""How much memory this process holds."""

from pathlib import Path

import torch


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most (ru_maxrss would count the parent's too)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


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
