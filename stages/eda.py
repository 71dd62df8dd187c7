"""Stage `eda`: describe the data in figures 1-7 of the original study.

python -m stages.eda --code data/check/eda.json --rows data/preprocess --plots plots/eda
    --metrics metrics/eda.json
"""

from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.base import load
from stages.rlhf.config.measure import EdaParams
from stages.rlhf.records import write_stage_metrics
from stages.rlhf.report.data_figures import draw
from stages.rlhf.runs.provenance import Stage, recorded

HEADLINE = (
    "question_length.sft.mean",
    "answer_length.sft.mean",
    "answer_length.rm.mean",
    "rank.longest",
    "rank.tied_groups",
)


@click.command(help=__doc__)
@path_options("code", "rows", "plots", "metrics")
def main(code: Path, rows: Path, plots: Path, metrics: Path) -> None:
    """Read the rows, draw, count."""
    with one_sentence_errors():
        params = load(EdaParams)
        with recorded(Stage("eda", params, code, {"rows": rows}), plots):
            found = draw(rows, plots, params.eda.top_categories)
            write_stage_metrics(metrics, found, HEADLINE)


if __name__ == "__main__":
    main()
