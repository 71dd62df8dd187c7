"""`koqa report`."""

import click

from stages.cli.options import one_sentence_errors


@click.command()
@click.option("--md", is_flag=True, help="Markdown with two figures, for a pull request.")
@click.option(
    "--base",
    metavar="REV",
    help="Compare with this commit, branch, tag or experiment.  [default: where this branch left"
    " main, else HEAD]",
)
@click.option(
    "--images",
    metavar="URL",
    default="",
    help="What precedes plots/ in the links of --md.  [default: nothing, relative links]",
)
def main(md: bool, base: str | None, images: str) -> None:
    """Compare results with an earlier commit.

    Prints the gates of the workspace, every headline metric that changed, before and after, with
    95% intervals, and the params that changed. For a comment on a pull request:

    \b
        koqa report --md > report.md
        gh pr comment --body-file report.md
    """
    if images and not md:
        raise click.UsageError("--images is for --md: plain text has no figures")
    with one_sentence_errors():
        from stages.rlhf.plan.changes import changes
        from stages.rlhf.plan.pull_request import FIGURES, report

        found = changes(base)
    figures = [file for file in FIGURES if (found.root / file).is_file()]
    click.echo(report(found, md, figures if md else (), images))
