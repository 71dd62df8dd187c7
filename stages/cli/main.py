"""The command `koqa`: tools for people; stages are run by `dvc`.

A subcommand is a file, `stages/cli/<name>.py` with a click command `main`, and its name in
COMMANDS. It is imported when used, and imports the library inside `main`, so help loads no torch.
"""

from importlib import import_module

import click

COMMANDS = (
    "ask",
    "chat",
    "compare",
    "export",
    "plan",
    "prune",
    "report",
)


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"stages.cli.{cmd_name}").main
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def koqa() -> None:
    """Korean question answering by RLHF: what goes with `dvc repro`."""


if __name__ == "__main__":
    koqa(prog_name="koqa")
