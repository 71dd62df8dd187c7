"""Which reference metric ranks answers as people do: on the groups of a run in this folder.

python -m tests.benchmarks.rank_agreement DATA [--write]

DATA names the data in the table. Of each group in data/preprocess/rm and judge the best-ranked
answer is the reference, and every pair of the others, if people rank them apart, is decided by the
metric. Accuracy over pairs, with its 95 % bootstrap interval over questions; a tie is half right.
`--write` adds the rows to metrics/tables/rank_agreement.csv.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.measure.text import chrf, length
from stages.rlhf.model import embedder, similarity
from stages.rlhf.records import RmRow, read_rows
from stages.rlhf.report import comparison
from tests.conftest import ROOT

TABLE = ROOT / "metrics" / "tables" / "rank_agreement.csv"
RESAMPLES = 1000
MOST = 2000  # groups

Values = NDArray[np.float64]  # (K,) of a group's answers


def groups() -> list[RmRow]:
    """Groups of the run, evenly spaced: MOST at most."""
    files = sorted(Path("data/preprocess").glob("[rj][mu]*/*.jsonl"))
    return comparison.spread([row for file in files for row in read_rows(file, RmRow)], MOST)


def metrics_of(rows: list[RmRow], model: embedder.Embedder) -> list[Mapping[str, Values]]:
    """Per group: chrF to the best answer, cosine to it, and length."""
    vectors = embedder.encode(model, [answer for row in rows for answer in row.answers])
    found, start = [], 0
    for row in rows:
        own = vectors[start : (start := start + len(row.answers))]
        best = row.best_answer
        found.append(
            {
                "chrF": np.array([chrf(answer, best) for answer in row.answers]),
                "cosine": similarity.cosine(own, np.repeat(own[[row.best]], len(own), axis=0)),
                "length alone": np.array([length(a) for a in row.answers], dtype=np.float64),
            }
        )
    return found


def right_pairs(values: Values, ranks: Values, best: int) -> tuple[float, int]:
    """Pairs without the best answer that the metric puts in the order of the ranks; all pairs."""
    right, count = 0.0, 0
    rest = [i for i in range(len(ranks)) if i != best]
    for i in rest:
        for j in rest:
            if ranks[i] < ranks[j]:
                right += 0.5 * (1 + np.sign(values[i] - values[j]))
                count += 1
    return right, count


def accuracy(pairs: NDArray[np.float64]) -> dict[str, float]:
    """(N, 2) right and all pairs per question -> accuracy over pairs, and its interval."""
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    sums = pairs[draws].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    total = pairs.sum(0)
    found = {"accuracy": total[0] / total[1], "accuracy_ci_low": low, "accuracy_ci_high": high}
    return {name: round(float(value), 4) for name, value in found.items()}


@click.command(help=__doc__)
@click.argument("data")
@click.option("--write", is_flag=True)
def main(data: str, write: bool) -> None:
    """Measure, print and write."""
    rows = groups()
    with tempfile.TemporaryDirectory() as folder:
        embedder.write(Path(folder), EmbedderConfig(hub=None, revision=None, prefix=""))
        measured = metrics_of(rows, embedder.load(Path(folder)))
    table = []
    for name in measured[0]:
        pairs = [
            right_pairs(values[name], np.array(row.ranks), row.best)
            for row, values in zip(rows, measured, strict=True)
        ]
        counts = np.array([pair for pair in pairs if pair[1]], dtype=np.float64)
        found = {"data": data, "metric": name, "questions": len(counts)}
        table.append({**found, "pairs": int(counts[:, 1].sum()), **accuracy(counts)})
    frame = pd.DataFrame(table)
    click.echo(frame.to_string(index=False))
    if write:
        before = pd.read_csv(TABLE) if TABLE.is_file() else frame.iloc[:0]
        kept = before[before["data"] != data]
        pd.concat([kept, frame]).to_csv(TABLE, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
