"""A million passages: time and memory to build and to search: metrics/tables/retrieval_scale.csv.

    python -m tests.benchmarks.retrieval_scale --passages 1000000 --out retrieval_scale.csv

The passages are of the sample world's grammar, a sentence or two each; the questions are those of
its test. Each kind of index is built in a process of its own, saved, loaded and searched. The
embeddings are of a model made for this, since the default one reads 30 sentences a second: random
vectors of 256 components for pairs of characters, added up. Recall is of FAISS's ten against the
ten with the highest cosines. Memory is what the process holds at most, without files that are
mapped; making the passages is part of it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any, cast

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.rlhf.config.base import load
from stages.rlhf.config.sample import SampleParams
from stages.rlhf.model.embedder import Embedder
from stages.rlhf.retrieval.dense import Dense
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.passages import Passage, split
from stages.rlhf.retrieval.search import Index, search
from stages.rlhf.retrieval.tokens import Name, pieces
from stages.world.corpus import make_corpus
from stages.world.splits import deal_questions
from tests.benchmarks.process_memory import memory

KINDS: dict[str, tuple[Name, ...]] = {
    "pieces": ("pieces",),
    "both": ("pieces", "morphemes"),
    "embeddings": (),
}
CHARACTERS, WIDTH, COUNT = 60, 256, 10


class Peak(Thread):
    """Watches the memory of this process that no file backs, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.done = 0.0, Event()

    def run(self) -> None:
        """Until `done` is set."""
        while not self.done.wait(0.05):
            self.most = max(self.most, memory("RssAnon"))


class Projection:
    """A random vector for each pair of characters, added up; what Embedder encodes with."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts -> (N, WIDTH)."""
        found = np.zeros((len(texts), WIDTH), dtype=np.float32)
        for row, words in zip(found, pieces(texts), strict=True):
            for word in words:
                row += self._vector(word)
        return found

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}

    def _vector(self, word: str) -> NDArray[np.float32]:
        if word not in self._known:
            seed = int.from_bytes(word.encode(), "big")
            self._known[word] = np.random.default_rng(seed).standard_normal(WIDTH, np.float32)
        return self._known[word]


def made(count: int) -> tuple[list[Passage], list[str]]:
    """That many passages, and the questions of the sample's test."""
    splits = deal_questions(load(SampleParams).sample)

    def texts() -> Iterator[tuple[str, str]]:
        for part in range(count):  # more than enough
            for text in make_corpus(20_000, splits.training, Random(f"scale/{part}")):
                yield str(part), text

    found = split(texts(), CHARACTERS)
    questions = [question.text for kind in splits.test.values() for question in kind]
    return [next(found) for _ in range(count)], questions


def measured(kind: str, count: int) -> dict[str, Any]:
    """A row of the table."""
    peak = Peak()
    peak.start()
    passages, questions = made(count)
    cells: dict[str, Any] = {"kind": kind, "passages": count, "questions": len(questions)}
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        index: Index
        if kind == "embeddings":
            model = Embedder(cast(Any, Projection()))
            index = Dense.build(model, [p.text for p in passages], "projection", folder, None)
        else:
            Lexical.build(passages, KINDS[kind]).save(folder)
            index = Lexical.load(folder)
        cells["build_seconds"] = time.perf_counter() - start
        del passages
        times = []
        for question in questions:
            start = time.perf_counter()
            search([index], question, COUNT)
            times.append(time.perf_counter() - start)
        cells |= {f"query_ms_p{p}": 1000 * float(np.percentile(times, p)) for p in (50, 95)}
        files = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        cells["files_mib"] = files / 2**20
        cells["recall@10"] = recall(index, questions[::10]) if isinstance(index, Dense) else 1.0
    peak.done.set()
    return cells | {"memory_mib": peak.most}


def recall(index: Dense, questions: Sequence[str]) -> float:
    """Share of the ten with the highest cosines that are found; of equal cosines any will do."""
    shares = []
    for vector in index.model.model.encode(questions):
        vector /= np.linalg.norm(vector)
        scores = index.scores(vector)
        least = np.sort(scores)[-COUNT]
        shares.append(np.mean(scores[index.nearest(vector, COUNT)] >= least - 1e-6))
    return float(np.mean(shares))


@click.command(help=__doc__)
@click.option("--passages", default=1_000_000, show_default=True)
@click.option("--kind", type=click.Choice([*KINDS]), help="One kind, in this process.")
@click.option("--out", type=click.Path(path_type=Path), help="A CSV of the table.")
def main(passages: int, kind: str | None, out: Path | None) -> None:
    """Measure every kind of index."""
    if kind:
        click.echo(json.dumps(measured(kind, passages)))
        return
    rows = []
    for each in KINDS:
        command = [sys.executable, "-m", "tests.benchmarks.retrieval_scale"]
        command += ["--passages", str(passages), "--kind", each]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(rows[-1])
    if out:
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
