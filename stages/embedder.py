"""Stage `embedder`: the similarity model, from the hub or a StaticEmbedding trained on the corpus.

python -m stages.embedder --code data/check/embedder.json --corpus data/preprocess/corpus.jsonl
    --sft data/preprocess/sft --out data/embedder --runtime metrics/runtime/embedder.json

Reads the training split alone: it measures on validation and test.
"""

import shutil
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.base import load
from stages.rlhf.config.measure import EmbedderParams
from stages.rlhf.hub import write_pointer
from stages.rlhf.model import embedder
from stages.rlhf.records import SftRow, read_jsonl, read_rows
from stages.rlhf.runs.provenance import Stage, recorded
from stages.rlhf.runtime import Clock, start


@click.command(help=__doc__)
@path_options("code", "corpus", "sft", "out", "runtime")
def main(code: Path, corpus: Path, sft: Path, out: Path, runtime: Path) -> None:
    """Make the similarity model, or point at it."""
    clock = Clock()
    with one_sentence_errors():
        params = load(EmbedderParams)
        config = params.embedder
        start(params.threads, config.seed, "embedder")
        shutil.rmtree(out, ignore_errors=True)
        train = sft / "train.jsonl"
        inputs = {} if config.hub else {"corpus": corpus, "train": train}
        with recorded(Stage("embedder", params, code, inputs), out):
            if config.hub is None:
                texts = [str(row["text"]) for row in read_jsonl(corpus)]
                pairs = [(row.question, row.answer) for row in read_rows(train, SftRow)]
                embedder.save(embedder.train(texts, pairs, config), out)
            else:
                write_pointer(out, config.hub, config.revision)
                embedder.load(out)  # fails here rather than in evaluate
    clock.write(runtime)


if __name__ == "__main__":
    main()
