"""Resumable stage runs and a result cache, kept outside DVC outs, which DVC removes before a run.

    $KOQA_WORK/<stage>/<fingerprint>/  checkpoints while it runs; done/, its result, from then on

or .work/ in the repository, shared by the copies in which DVC runs queued experiments. The
fingerprint is provenance's, so that only the same work is resumed. One process works in a folder;
another that wants the same result waits, then takes it.

Nothing here is removed by itself: `koqa prune`.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from stages.rlhf import files
from stages.rlhf.records import write_metrics
from stages.rlhf.runs import provenance, signals
from stages.rlhf.runs.checkpoints import resumed_from_steps
from stages.rlhf.runs.notice import notice
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.runtime import circumstances

EXPERIMENTS = Path(".dvc") / "tmp" / "exps"  # DVC's copies of the repository lie below it
DONE, LOCK = "done", "lock"
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}  # what flock says there
WAIT = 0.5  # seconds between two attempts at a lock


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
    """The work folder of this run and of every run with the same fingerprint."""
    return root() / origin.stage / origin.fingerprint[:16]


def run_cached(stage: provenance.Stage, outs: Sequence[Path], do: Callable[[Path], None]) -> None:
    """Make a stage's outs by `do(work folder)`, or restore them where they were made before.

    The first of `outs`, a folder, gets run.json. The last, a file of times, gets next to it
    runs/<its name>: when, from which commit, on what, and from which steps it resumed.

    Raises ValueError where code, params or inputs changed meanwhile, Interrupted where a stop was
    requested.
    """
    started = datetime.now(UTC)
    origin = provenance.origin(stage)
    folder = folder_of(origin)
    runs_file = outs[-1].parent / "runs" / outs[-1].name
    if "RANK" in os.environ:  # one of several: the process that launched it does the rest
        with signals.catch_signals():
            do(folder)
        return
    with signals.catch_signals(), locked(folder):
        if restore(folder / DONE, outs):
            notice(f"{stage.name}: restored from {folder / DONE}")
            write_metrics(runs_file, circumstances(started, restored_from_cache=True))
            return
        do(folder)
        origin.write(outs[0])
        resumed = resumed_from_steps(folder)
        write_metrics(runs_file, circumstances(started, resumed_from_steps=resumed))
        keep(folder, outs)
        provenance.check_unchanged(origin, stage)
        if signals.stop_requested():
            raise Interrupted(f"when stage {stage.name} was done")


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a work folder alone. Raises BlockingIOError where another does and `wait` is false."""
    handle = None
    while handle is None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
        os.set_inheritable(handle, True)  # to torchrun, which may outlive this process
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
    announced = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not wait:
                raise
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ValueError(
                f"{folder}: this file system has no file locks ({error}); set KOQA_WORK to a folder"
                " on one that has, such as a local disk"
            ) from error
        if signals.stop_requested():
            raise Interrupted(f"while waiting for {folder}")
        if not announced:
            notice(f"{folder}: another process is running this stage on the same inputs; waiting")
            announced = True
        time.sleep(WAIT)


def _is_named(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.fstat(handle).st_ino == path.stat().st_ino
    return False


def keep(folder: Path, outs: Sequence[Path]) -> None:
    """Copy finished outs to <folder>/done and delete the checkpoints.

    A disk error is reported, and the stage keeps its result.
    """
    draft = folder / f"{DONE}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for index, out in enumerate(outs):
            _copy(out, draft / str(index))
        files.write_manifest(draft)
        shutil.rmtree(folder / DONE, ignore_errors=True)
        files.rename(draft, folder / DONE)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        notice(f"{draft}: the result could not be kept: {error}")
        return
    for path in folder.iterdir():
        if path.is_dir() and path.name != DONE:
            shutil.rmtree(path)


def restore(done: Path, outs: Sequence[Path]) -> bool:
    """Copy the result kept in `done` to the stage's outs; False where there is none.

    A damaged one is reported on stderr and ignored.
    """
    if not done.is_dir():
        return False
    problem = files.verify_manifest(done)
    if problem:
        notice(f"{done}: {problem}; the stage runs again")
        return False
    for index, out in enumerate(outs):
        if out.is_dir():
            shutil.rmtree(out)
        _copy(done / str(index), out)
    return True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
