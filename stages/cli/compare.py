"""`koqa compare`."""

from pathlib import Path

import click

from stages.cli.options import one_sentence_errors


@click.command()
@click.option(
    "--csv",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the table to this file.",
)
def main(csv: Path | None) -> None:
    """Print the comparison of base models, in Markdown.

    SFT's similarity to the references, and its gain over the base model. Rows are the workspace and
    all finished experiments, one per base model and embedder. To run them:

    \b
        dvc exp run --queue -S 'model=llama32-1b,kanana15-2b'
        dvc queue start
    """
    with one_sentence_errors():
        from stages.rlhf.plan.compare_models import finished_runs, markdown, table
        from stages.rlhf.records import write_csv

        found = table(finished_runs())
        if csv:
            csv.parent.mkdir(parents=True, exist_ok=True)
            write_csv(csv, found)
    click.echo(markdown(found))
