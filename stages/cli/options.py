"""Options and errors of every command, so that a stage is what it does and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def path_options(*names: str) -> Callable[[Command], Command]:
    """A required option `--name` for each name, handed on as a Path."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = click.option(f"--{name}", type=click.Path(path_type=Path), required=True)(
                command
            )
        return command

    return decorate


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """What the user can mend ends the command with its message, not with a traceback."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error
