"""Stage `embedder`: what measures similarity, as a pointer to a package's or the hub's weights.

python -m stages.embedder --code data/check/embedder.json --out data/embedder
    --runtime metrics/runtime/embedder.json
"""

import shutil
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.base import load
from stages.rlhf.config.measure import EmbedderParams
from stages.rlhf.model import embedder
from stages.rlhf.runs.provenance import Stage, recorded
from stages.rlhf.runtime import Clock


@click.command(help=__doc__)
@path_options("code", "out", "runtime")
def main(code: Path, out: Path, runtime: Path) -> None:
    """Point at the similarity model, after loading it."""
    clock = Clock()
    with one_sentence_errors():
        params = load(EmbedderParams)
        shutil.rmtree(out, ignore_errors=True)
        with recorded(Stage("embedder", params, code, {}), out):
            embedder.write(out, params.embedder)
    clock.write(runtime)


if __name__ == "__main__":
    main()
