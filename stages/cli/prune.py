"""`koqa prune`."""

import time

import click

from stages.cli.options import one_sentence_errors


@click.command()
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="Only folders that have not changed for so long.",
)
def main(days: float) -> None:
    """Remove work folders that no process uses, and print them.

    Deletes the checkpoints of unfinished runs, and a copy of finished results that DVC also has.
    """
    with one_sentence_errors():
        from stages.rlhf.runs.cache import root
        from stages.rlhf.runs.prune import prune

        for folder in prune(root(), days, time.time()):
            click.echo(folder)
