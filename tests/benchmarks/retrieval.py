"""Ways of finding the paragraph that a question is about, on KorQuAD: metrics/tables/retrieval.csv.

    python -m tests.benchmarks.retrieval KorQuAD_v1.0_dev.json --out metrics/tables/retrieval.csv

Its 964 paragraphs are the passages. BM25's constants and weights were chosen by hand on
all of its questions, which flatters them; columns with `odd` are of every second article. 95 %
intervals are over articles, for
questions of one article share its paragraphs. Times are of one process: to tokenise and index all
paragraphs, and for one question. `--dense` adds the default embedder, which takes some minutes.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.rlhf.model import embedder
from stages.rlhf.retrieval.dense import Dense
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.measures import DEPTH, measure
from stages.rlhf.retrieval.passages import Passage, sentences_of
from stages.rlhf.retrieval.search import Index, best, search
from stages.rlhf.retrieval.tokens import Name

RESAMPLES = 1000


class Data(NamedTuple):
    """P passages; N questions, their passages and articles."""

    passages: list[Passage]
    questions: list[str]
    right: list[set[int]]
    article: NDArray[np.int64]


class Library:
    """bm25s as it comes: its own tokens, k1 and b, over whole paragraphs."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(list(texts), stopwords=None, show_progress=False))

    def find(self, question: str, count: int) -> list[int]:
        """At most `count` passages, the best first."""
        (words,) = bm25s.tokenize(question, stopwords=None, return_ids=False, show_progress=False)
        return best(self.index.get_scores(words), count) if words else []


def read(file: Path) -> Data:
    """A file in SQuAD's form; every paragraph is a passage."""
    found = Data([], [], [], np.array([], dtype=np.int64))
    articles = []
    for number, article in enumerate(json.loads(file.read_text(encoding="utf-8"))["data"]):
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                found.questions.append(qa["question"])
                found.right.append({len(found.passages)})
                articles.append(number)
            sentences = tuple(sentences_of(paragraph["context"]))
            found.passages.append(Passage(article["title"], sentences))
    return found._replace(article=np.array(articles))


def ways(data: Data, dense: bool) -> dict[str, Callable[[], list[Index]]]:
    """By name, what builds the indexes that are searched together."""
    texts = [passage.text for passage in data.passages]

    def lexical(*names: Name) -> Callable[[], list[Index]]:
        return lambda: [Lexical.build(data.passages, names)]

    both: tuple[Name, Name] = ("pieces", "morphemes")
    found: dict[str, Callable[[], list[Index]]] = {
        "bm25s as it comes": lambda: [Library(texts)],
        "pieces": lexical("pieces"),
        "morphemes": lexical("morphemes"),
        "both, by rank": lambda: [Lexical.build(data.passages, [name]) for name in both],
        "both": lexical(*both),
    }
    if dense:
        model = embedder.Embedder(embedder._package())

        def embedded() -> Index:
            with tempfile.TemporaryDirectory() as folder:
                return Dense.build(model, texts, embedder.VERSION, Path(folder), None)

        found["embedder"] = lambda: [embedded()]
        found["both and embedder, by rank"] = lambda: [*lexical(*both)(), embedded()]
    return found


def tried(data: Data, build: Callable[[], list[Index]]) -> dict[str, Any]:
    """Cells of a way: measures with intervals, and times."""
    start = time.perf_counter()
    indexes = build()
    search(indexes, data.questions[0], DEPTH)  # what is loaded at first use counts as building
    cells: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
    found, times = [], []
    for question in data.questions:
        start = time.perf_counter()
        found.append(search(indexes, question, DEPTH))
        times.append(time.perf_counter() - start)
    values = measure(found, data.right)
    cells |= {f"query_ms_p{p}": 1000 * float(np.percentile(times, p)) for p in (50, 95)}
    return measures_of(values, data.article) | cells


def measures_of(
    values: Mapping[str, NDArray[np.float64]], article: NDArray[np.int64]
) -> dict[str, float]:
    """Means with 95 % intervals over articles, and those of the odd articles."""
    cells = {}
    groups = [np.flatnonzero(article == number) for number in np.unique(article)]
    rng = np.random.default_rng(0)
    draws = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        for _ in range(RESAMPLES)
    ]
    for key, found in values.items():
        means = [found[draw].mean() for draw in draws]
        low, high = np.quantile(means, (0.025, 0.975))
        cells |= {key: found.mean(), f"{key}_ci_low": low, f"{key}_ci_high": high}
        if key in ("hit@1", "mrr@10"):
            cells[f"{key}, odd"] = found[article % 2 == 1].mean()
    return cells


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dense", is_flag=True)
@click.option("--only", multiple=True, help="Ways to try.  [all]")
@click.option("--out", type=click.Path(path_type=Path), help="A CSV of the table.")
def main(file: Path, dense: bool, only: tuple[str, ...], out: Path | None) -> None:
    """Try every way."""
    data = read(file)
    rows = []
    for name, build in ways(data, dense).items():
        if only and name not in only:
            continue
        rows.append({"way": name, "questions": len(data.questions), **tried(data, build)})
        shown = {k: round(v, 4) for k, v in rows[-1].items() if isinstance(v, float)}
        click.echo(f"{name}: {shown}")
    if out:
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
