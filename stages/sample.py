"""Write the offline default: a Korean QA world with known truth, in the AI-Hub shape.

python -m stages.sample --out data/sample
"""

import shutil
from pathlib import Path

import click

from stages.rlhf.config.base import load
from stages.rlhf.config.sample import SampleParams
from stages.rlhf.records import write_jsonl
from stages.rlhf.runs.provenance import recorded
from stages.world.aihub import write_package
from stages.world.build import build_world
from stages.world.dirt import plant


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
def main(out: Path) -> None:
    """Write the zips and corpus.jsonl into OUT, in place of what is there."""
    try:
        params = load(SampleParams)
        with recorded("sample", params, {}, out):
            world = build_world(params.sample)
            if out.exists():
                shutil.rmtree(out)
            write_package(out, plant(world, params.sample.seed))
            write_jsonl(out / "corpus.jsonl", ({"text": text} for text in world.corpus))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
