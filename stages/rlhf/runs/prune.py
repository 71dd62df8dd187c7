"""Remove work folders: python -m stages.rlhf.runs.prune [--days N]

Every one that no process works in and that was not touched for N days (0: all of them). What is
lost are the checkpoints of unfinished cache, and a copy of finished results that DVC has too.
"""

import argparse
import shutil
import time
from pathlib import Path

from stages.rlhf.runs import cache

DAY = 86400.0


def prune(root: Path, days: float, now: float) -> list[Path]:
    """Remove what is old and idle below `root`; the folders that are gone."""
    gone = []
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
        gone.append(folder)
    return gone


def main() -> None:
    """Prune, and say what went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=float, default=0, help="untouched for so long (0: all)")
    for folder in prune(cache.root(), parser.parse_args().days, time.time()):
        print(folder)


if __name__ == "__main__":
    main()
