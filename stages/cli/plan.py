"""`koqa plan`."""

import click

from stages.cli.options import one_sentence_errors


@click.command()
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Memory available.  [default: this GPU's, or this machine's]",
)
def main(memory: float | None) -> None:
    """Estimate memory and time before a run.

    Prints the memory of every stage that loads a model, by purpose, and a rough time, for the model
    in params.yaml. Exits with an error naming the parameter to change if a stage does not fit.
    """
    with one_sentence_errors():
        from stages.rlhf.config.whole import load_params
        from stages.rlhf.plan.plan import make_plan, report

        plan = make_plan(load_params(), memory)
    click.echo(report(plan))
    if plan.problems:
        raise click.ClickException("\n".join(plan.problems))
