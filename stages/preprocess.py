"""Clean, split and cap the rows of a source: `data.source` and `data.path` of params.yaml."""

import os
from pathlib import Path

import click

from stages.rlhf.config.base import load
from stages.rlhf.config.preprocess import PreprocessParams
from stages.rlhf.ingest.pipeline import prepare
from stages.rlhf.records import write_metrics
from stages.rlhf.runs.provenance import recorded


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="data/preprocess")
@click.option("--metrics", type=click.Path(path_type=Path), required=True, help="counts (JSON)")
def main(out: Path, metrics: Path) -> None:
    """Write the files of stages/rlhf/records.py to OUT."""
    try:
        params = load(PreprocessParams)
        os.environ.setdefault("RAYON_NUM_THREADS", str(params.threads))  # of tokenizers
        with recorded("preprocess", params, {"source": Path(params.data.path)}, out):
            write_metrics(metrics, prepare(params, out))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
