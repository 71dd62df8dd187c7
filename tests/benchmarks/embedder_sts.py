"""How well similarities agree with people: KLUE-STS, Korean pairs that people rated from 0 to 5.

python -m tests.benchmarks.embedder_sts klue-sts-v1.1_dev.json [--other NAME FOLDER]... [--write]

The file is of github.com/KLUE-benchmark/KLUE (CC BY-SA 4.0, Park et al. 2021). Of
each measure: Spearman correlation with the mean rating, its 95% bootstrap interval over pairs, and
sentences a second of CPU time, on one thread with OPENBLAS_NUM_THREADS=1. Measures are chrF, the
default embedder, and each `--other`: data/embedder of a hub model, or a folder that
SentenceTransformer has saved. `--write` writes metrics/tables/embedder.csv.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.hub import POINTER
from stages.rlhf.measure.text import chrf
from stages.rlhf.model import embedder, similarity
from tests.conftest import ROOT

TABLE = ROOT / "metrics" / "tables" / "embedder.csv"
RESAMPLES = 1000

Measure = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]


def pairs(path: Path) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """First sentences, second sentences, and people's mean ratings of the pairs."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    ratings = np.array([row["labels"]["real-label"] for row in rows])
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows], ratings


def by_chrf(one: Sequence[str], other: Sequence[str]) -> NDArray[np.float64]:
    """(N,) chrF of pairs."""
    return np.array([chrf(a, b) for a, b in zip(one, other, strict=True)])


def by_cosine(model: embedder.Embedder) -> Measure:
    """A function that gives (N,) cosines of pairs."""

    def measure(one: Sequence[str], other: Sequence[str]) -> NDArray[np.float64]:
        return similarity.cosine(*np.split(embedder.encode(model, [*one, *other]), 2))

    return measure


def agreement(values: NDArray[np.float64], ratings: NDArray[np.float64]) -> dict[str, float]:
    """Spearman correlation of (N,) and (N,), with its interval."""
    draws = np.random.default_rng(0).integers(len(ratings), size=(RESAMPLES, len(ratings)))
    resampled = [spearmanr(values[i], ratings[i]).statistic for i in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = {"spearman": spearmanr(values, ratings).statistic, "spearman_ci_low": low}
    found["spearman_ci_high"] = high
    return {name: round(float(value), 4) for name, value in found.items()}


def opened(folder: Path) -> embedder.Embedder:
    """What a pointer names, or what SentenceTransformer has saved."""
    if (folder / POINTER).is_file():
        return embedder.load(folder)
    return embedder.Embedder(embedder.sentence_transformer(folder))


@click.command(help=__doc__)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--other", type=(str, click.Path(exists=True, path_type=Path)), multiple=True)
@click.option("--write", is_flag=True)
def main(file: Path, other: tuple[tuple[str, Path], ...], write: bool) -> None:
    """Measure, print and write the table."""
    one, two, ratings = pairs(file)
    with tempfile.TemporaryDirectory() as folder:
        embedder.write(Path(folder), EmbedderConfig(hub=None, revision=None, prefix=""))
        default = by_cosine(embedder.load(Path(folder)))
    measures: dict[str, Measure] = {"chrF": by_chrf}
    measures |= {name: by_cosine(opened(folder)) for name, folder in other}
    measures["default embedder"] = default
    rows = []
    for name, measure in measures.items():
        measure(one[:1], two[:1])  # loads what is loaded once
        started = time.process_time()
        values = measure(one, two)
        speed = 2 * len(one) / (time.process_time() - started)
        found = {"measure": name, "pairs": len(one), **agreement(values, ratings)}
        rows.append({**found, "sentences_per_cpu_second": round(speed)})
    table = pd.DataFrame(rows)
    click.echo(table.to_string(index=False))
    if write:
        table.to_csv(TABLE, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
