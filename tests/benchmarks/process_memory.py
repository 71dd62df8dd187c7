"""How much memory this process holds."""

from pathlib import Path


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most (ru_maxrss would count the parent's too)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10
