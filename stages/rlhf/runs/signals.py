"""SIGINT and SIGTERM ask a stage to end: it finishes its step, saves, and says how to go on.

A second signal ends it at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(ValueError):
    """The stage was asked to end, and what it had done is saved."""

    def __init__(self, done: str) -> None:
        super().__init__(f"interrupted {done}; the same command goes on from there")


class _Bell:
    rung = False


def stop_requested() -> bool:
    """Whether this process was asked to end."""
    return _Bell.rung


@contextmanager
def catch_signals() -> Iterator[None]:
    """Within, the first signal is noted for `asked`; a second is KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    _Bell.rung = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Bell.rung = False


def _note(number: int, frame: FrameType | None) -> None:
    if _Bell.rung:
        raise KeyboardInterrupt
    _Bell.rung = True
    name = signal.Signals(number).name
    click.echo(f"{name}: this step is finished and saved; once more to end at once", err=True)
