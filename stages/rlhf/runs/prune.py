"""Removal of work folders that no process uses and that have not changed for some days."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from stages.rlhf.runs import cache

DAY = 86400.0


def prune(root: Path, days: float, now: float) -> Iterator[Path]:
    """Remove old and idle folders below `root`; yields each one after its removal."""
    for lock in sorted(root.glob(f"*/*/{cache.LOCK}")):
        folder = lock.parent
        touched = max(p.stat().st_mtime for p in [folder, *folder.rglob("*")])
        if now - touched < days * DAY:
            continue
        try:
            with cache.locked(folder, wait=False):
                shutil.rmtree(folder)
        except BlockingIOError:
            continue
        yield folder
