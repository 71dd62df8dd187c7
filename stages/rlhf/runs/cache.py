"""Where a stage keeps what it must not lose: outside its outs, which DVC removes before a run.

    $KOQA_WORK/<stage>/<fingerprint>/  checkpoints while it works; done/, its result, from then on

or .work/ beside the repository, also for the copies of it in which DVC runs queued experiments. The
fingerprint is provenance's, so that only the very same work is gone on with. One process works in a
folder; another that wants the same result waits, and takes it.

Nothing here is removed by itself: `python -m stages.rlhf.runs.prune`.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from stages.rlhf import files
from stages.rlhf.config.base import StageParams
from stages.rlhf.records import write_metrics
from stages.rlhf.runs import provenance, signals
from stages.rlhf.runs.checkpoints import resumed_from_steps
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.runtime import circumstances

EXPERIMENTS = Path(".dvc") / "tmp" / "exps"  # DVC's copies of the repository lie below it
DONE, LOCK = "done", "lock"
WAIT = 0.5  # seconds between two looks at a lock


def root() -> Path:
    """The folder of all work folders."""
    if os.environ.get("KOQA_WORK"):
        return Path(os.environ["KOQA_WORK"])
    here = Path.cwd()
    for parent in here.parents:
        if here.is_relative_to(parent / EXPERIMENTS):
            return parent / ".work"
    return here / ".work"


def folder_of(origin: provenance.Origin) -> Path:
    """The work folder of this very work."""
    return root() / origin.stage / origin.fingerprint[:16]


def run_cached(
    stage: str,
    params: StageParams,
    inputs: Mapping[str, Path],
    outs: Sequence[Path],
    do: Callable[[Path], None],
) -> None:
    """Make a stage's outs by `do(work folder)`, or take them from where they were made before.

    The first of `outs`, a folder, gets run.json. The last, a file of times, gets beside it
    runs/<its name>: when, from which commit, on what, and from which steps it went on.

    Raises ValueError where code, params or inputs changed meanwhile, Interrupted where the process
    was asked to end.
    """
    started = datetime.now(UTC)
    origin = provenance.origin(stage, params, inputs)
    folder = folder_of(origin)
    told = outs[-1].parent / "runs" / outs[-1].name
    if "RANK" in os.environ:  # one of several: the process that launched it does the rest
        with signals.catch_signals():
            do(folder)
        return
    with signals.catch_signals(), locked(folder):
        if restore(folder / DONE, outs):
            click.echo(f"{stage}: taken from {folder / DONE}", err=True)
            write_metrics(told, circumstances(started, restored_from_cache=True))
            return
        do(folder)
        origin.write(outs[0])
        write_metrics(told, circumstances(started, resumed_from_steps=resumed_from_steps(folder)))
        keep(folder, outs)
        provenance.check_unchanged(origin, params, inputs)
        if signals.stop_requested():
            raise Interrupted(f"when stage {stage} was done")


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a work folder alone. Raises BlockingIOError where another does and `wait` is false."""
    handle = None
    while handle is None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
        try:
            _acquire(handle, folder, wait)
        except BaseException:
            os.close(handle)
            raise
        if not _is_named(handle, folder / LOCK):  # pruned while we waited
            os.close(handle)
            handle = None
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may hold the file open
        os.close(handle)


def _acquire(handle: int, folder: Path, wait: bool) -> None:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not wait:
                raise
        if signals.stop_requested():
            raise Interrupted(f"while waiting for {folder}")
        if not told:
            click.echo(f"{folder}: another process does this very work; waiting", err=True)
            told = True
        time.sleep(WAIT)


def _is_named(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.fstat(handle).st_ino == path.stat().st_ino
    return False


def keep(folder: Path, outs: Sequence[Path]) -> None:
    """Copy finished outs to <folder>/done; checkpoints are not needed from then on.

    A disk that refuses it is named, and the stage has its result all the same.
    """
    draft = folder / f"{DONE}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for place, out in enumerate(outs):
            _copy(out, draft / str(place))
        files.write_manifest(draft)
        shutil.rmtree(folder / DONE, ignore_errors=True)
        files.rename(draft, folder / DONE)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        click.echo(f"{draft}: the result could not be kept: {error}", err=True)
        return
    for path in folder.iterdir():
        if path.is_dir() and path.name != DONE:
            shutil.rmtree(path)


def restore(done: Path, outs: Sequence[Path]) -> bool:
    """Put the result that lies in `done` where the stage's outs are; False where none lies there.

    A damaged one is named on stderr and passed over.
    """
    if not done.is_dir():
        return False
    problem = files.verify_manifest(done)
    if problem:
        click.echo(f"{done}: {problem}; the work is done again", err=True)
        return False
    for place, out in enumerate(outs):
        if out.is_dir():
            shutil.rmtree(out)
        _copy(done / str(place), out)
    return True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
