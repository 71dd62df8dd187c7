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
@click.option("--gpus", type=click.IntRange(min=1), help="Of GPUs that are not here: how many.")
@click.option("--hosts", type=click.IntRange(min=1), default=1, help="Machines with that many.")
@click.option(
    "--card",
    type=click.Choice(["a100", "h100", "h200"]),
    default="h100",
    show_default=True,
    help="What kind of GPU.",
)
def main(memory: float | None, gpus: int | None, hosts: int, card: str) -> None:
    """Estimate memory and time before a run.

    Prints the memory of every stage that loads a model, by purpose, and a rough time, for the model
    in params.yaml. Exits with an error naming the parameter to change if a stage does not fit.

    With --gpus: of cards that are not here, from their data sheets, nothing is measured.
    """
    with one_sentence_errors():
        from stages.rlhf.config.whole import load_params
        from stages.rlhf.plan.plan import make_plan, report, shape_of

        if gpus is not None:
            from stages.rlhf.plan import cluster

            params, those = load_params(), cluster.Cluster(cluster.CARDS[card], gpus, hosts)
            click.echo(cluster.report(shape_of(params), params, those, card))
            return
        plan = make_plan(load_params(), memory)
    click.echo(report(plan))
    if plan.problems:
        raise click.ClickException("\n".join(plan.problems))
