"""SIGINT and SIGTERM ask a stage to stop: it finishes its step, saves, and says how to resume.

A second signal ends it at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stages.rlhf.runs.notice import notice

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(ValueError):
    """A stop was requested, and the stage's work is saved."""

    def __init__(self, done: str) -> None:
        super().__init__(f"interrupted {done}; the same command resumes from there")


class _Stop:
    requested = False  # no threading.Event: a handler may not wait for a lock


def stop_requested() -> bool:
    """Whether a signal came to this process."""
    return _Stop.requested


@contextmanager
def catch_signals() -> Iterator[None]:
    """Within, the first signal sets `stop_requested`; a second raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request_stop) for number in SIGNALS}
    _Stop.requested = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Stop.requested = False


def _request_stop(number: int, frame: FrameType | None) -> None:
    if _Stop.requested:
        raise KeyboardInterrupt
    _Stop.requested = True
    name = signal.Signals(number).name
    notice(f"{name}: finishing and saving this step; send it again to end at once")
