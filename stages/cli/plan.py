"""`koqa plan`."""

import sys

import click

from stages.cli.options import one_sentence_errors

DOES_NOT_FIT = 3  # exit status of --stage; 1: it cannot tell


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
@click.option(
    "--stage",
    type=click.Choice(["sft", "rm", "judge", "gate", "ppo", "evaluate"]),
    help="Whether this one fits a GPU, whole or sharded; as a stage asks before it loads a model.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    envvar="KOQA_PROCESSES",
    default=1,
    help="With --stage: on as many GPUs of this machine.  [default: KOQA_PROCESSES, or 1]",
)
@click.option(
    "--shard/--no-shard",
    default=True,
    help="With --stage: whether those GPUs may share the weights.",
    show_default=True,
)
def main(
    memory: float | None,
    gpus: int | None,
    hosts: int,
    card: str,
    stage: str | None,
    processes: int,
    shard: bool,
) -> None:
    """Estimate memory and time before a run.

    Prints the memory of every stage that loads a model, by purpose, and a rough time, for the model
    in params.yaml. Exits with an error naming the parameter to change if a stage does not fit.

    With --gpus: of cards that are not here, from their data sheets, nothing is measured.
    With --stage: prints `whole` or `shard`, or what to change, with exit status 3.
    """
    with one_sentence_errors():
        from stages.rlhf.config.whole import load_params
        from stages.rlhf.plan import fits

        params = load_params()
        if stage is not None:
            limit = memory or fits.available_memory()
            cards = processes if shard else 1
            found = fits.fit(stage, fits.shape_of(params), params, limit, processes, cards)
            click.echo(found.how or found.problem)
            sys.exit(0 if found.how else DOES_NOT_FIT)
        if gpus is not None:
            from stages.rlhf.plan import cluster

            those = cluster.Cluster(cluster.CARDS[card], gpus, hosts)
            click.echo(cluster.report(fits.shape_of(params), params, those, card))
            return
        from stages.rlhf.plan.plan import make_plan, report

        plan = make_plan(params, memory)
    click.echo(report(plan))
    if plan.problems:
        raise click.ClickException("\n".join(plan.problems))
