"""Stage `embedder`: the ruler, a pointer to the hub or a StaticEmbedding model made on the corpus.

python -m stages.embedder --corpus data/preprocess/corpus.jsonl --sft data/preprocess/sft
    --out data/embedder --runtime metrics/runtime/embedder.json

Reads the training split alone: validation and test are what it measures.
"""

import shutil
from pathlib import Path

import click

from stages.rlhf import runtime
from stages.rlhf.config.base import load
from stages.rlhf.config.embedder import EmbedderParams
from stages.rlhf.hub import write_pointer
from stages.rlhf.model import embedder
from stages.rlhf.records import SftRow, read_jsonl, read_rows
from stages.rlhf.runs.provenance import recorded


@click.command(help=__doc__)
@click.option("--corpus", type=click.Path(path_type=Path), required=True)
@click.option("--sft", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--runtime", "seconds", type=click.Path(path_type=Path), help="Where times go.")
def main(corpus: Path, sft: Path, out: Path, seconds: Path | None) -> None:
    """Make the ruler, or point at it."""
    clock = runtime.Clock()
    try:
        params = load(EmbedderParams)
        knobs = params.embedder
        runtime.start(params.threads, knobs.seed, "embedder")
        shutil.rmtree(out, ignore_errors=True)
        train = sft / "train.jsonl"
        inputs = {} if knobs.hub else {"corpus": corpus, "train": train}
        with recorded("embedder", params, inputs, out):
            if knobs.hub is None:
                texts = [str(row["text"]) for row in read_jsonl(corpus)]
                pairs = [(row.question, row.answer) for row in read_rows(train, SftRow)]
                embedder.save(embedder.train(texts, pairs, knobs), out)
            else:
                write_pointer(out, knobs.hub, knobs.revision)
                embedder.load(out)  # fails here rather than in evaluate
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if seconds is not None:
        clock.write(seconds)


if __name__ == "__main__":
    main()
