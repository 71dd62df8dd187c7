"""Stage `sample`: the offline default, a Korean QA world with known truth, in the AI-Hub shape.

python -m stages.sample --code data/check/sample.json --out data/sample
"""

import shutil
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.base import load
from stages.rlhf.config.sample import SampleParams
from stages.rlhf.records import write_jsonl
from stages.rlhf.runs.provenance import Stage, recorded
from stages.world.aihub import write_package
from stages.world.build import build_world
from stages.world.dirt import plant


@click.command(help=__doc__)
@path_options("code", "out")
def main(code: Path, out: Path) -> None:
    """Write the zips and corpus.jsonl into OUT, replacing what is there."""
    with one_sentence_errors():
        params = load(SampleParams)
        with recorded(Stage("sample", params, code, {}), out):
            world = build_world(params.sample)
            if out.exists():
                shutil.rmtree(out)
            write_package(out, plant(world, params.sample.seed))
            write_jsonl(out / "corpus.jsonl", ({"text": text} for text in world.corpus))


if __name__ == "__main__":
    main()
