"""Stage `preprocess`: read a source, clean, split and cap its rows.

python -m stages.preprocess --code data/check/preprocess.json --model data/check/model.json
    --out data/preprocess --metrics metrics/preprocess.json

The source is `data.source` and `data.path` of params.yaml.
"""

import os
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.base import load
from stages.rlhf.config.preprocess import PreprocessParams
from stages.rlhf.ingest.pipeline import prepare
from stages.rlhf.records import write_stage_metrics
from stages.rlhf.runs.provenance import Stage, recorded

HEADLINE = (
    "sft.read",
    "sft.kept",
    "rm.read",
    "rm.kept",
    "ppo.read",
    "ppo.kept",
    "tokens.sft_answer.p95",
)


@click.command(help=__doc__)
@path_options("code", "model", "out", "metrics")
def main(code: Path, model: Path, out: Path, metrics: Path) -> None:
    """Write the files of stages/rlhf/records.py to OUT."""
    with one_sentence_errors():
        params = load(PreprocessParams)
        os.environ.setdefault("RAYON_NUM_THREADS", str(params.threads))  # of tokenizers
        inputs = {"source": params.data.path}
        if params.base_model.path:
            inputs["model"] = model
        with recorded(Stage("preprocess", params, code, inputs), out):
            report, summary = prepare(params, out)
            write_stage_metrics(metrics, report, HEADLINE)
            for line in summary:
                click.echo(line)


if __name__ == "__main__":
    main()
