"""Comparison of base models: SFT's similarity to the references, and its gain over the base model.

    dvc exp run --queue -S 'model=llama32-1b,kanana15-2b,gemma2-2b,llama2-ko-7b'
    dvc queue start
    python -m stages.rlhf.plan.compare_models --csv models.csv    # Markdown to the terminal

Rows are the workspace and all finished experiments (`dvc.api.exp_show()`), one per model and
embedder: cosines of different embedders are not comparable, so the embedder's hash is shown. The
figures of the original study are in brackets, from other data and another embedder; its "euclidean"
is the similarity 1 / (1 + distance).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd

from stages.rlhf.records import write_csv

METRICS = "metrics/evaluate.json"
COLUMNS = {
    "cosine": "sft.cosine",
    "euclidean_similarity": "sft.euclidean_similarity",
    "euclidean_distance": "sft.euclidean_distance",
    "pearson": "sft.pearson",
    "gain": "sft_gain.cosine",
    "gain_percent": "sft_gain.percent",
}
ORIGINAL = {  # columns as in ORIGINAL_COLUMNS
    "kanana15-2b": (0.799, 0.382, 0.799, 0.0564, 7.59),
    "gemma2-2b": (0.788, 0.367, 0.788, 0.2961, 60.2),
    "llama2-ko-7b": (0.798, 0.375, 0.798, 0.1512, 23.37),
    "llama32-1b": (0.764, 0.347, 0.764, 0.1304, 20.58),
}
ORIGINAL_COLUMNS = ("cosine", "euclidean_similarity", "pearson", "gain", "gain_percent")
FORMS = {"gain": "{:+.4f}", "gain_percent": "{:+.2f} %"}

Row = Mapping[str, Any]


def value(row: Row, file: str, key: str) -> Any:
    """A metric; exp_show prefixes its file only if the key is in two files."""
    return row.get(f"{file}:{key}", row.get(key))


def table(shown: Sequence[Row]) -> pd.DataFrame:
    """Rows of exp_show -> one row per model and embedder, the last one that ran.

    Raises ValueError if none has metrics of stage evaluate.
    """
    rows: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in shown:
        if value(row, METRICS, COLUMNS["cosine"]) is None or row.get("State") not in (
            None,
            "Success",
        ):
            continue
        embedder = str(value(row, METRICS, "embedder_sha256") or "")[:8]
        model = row["model"]
        original = dict(zip(ORIGINAL_COLUMNS, ORIGINAL.get(model, ()), strict=False))
        rows[model, embedder] = {
            "model": model,
            "experiment": row.get("Experiment") or row.get("rev"),
            "embedder": embedder,
            **{name: value(row, METRICS, key) for name, key in COLUMNS.items()},
            **{f"original_{name}": original.get(name) for name in ORIGINAL_COLUMNS},
        }
    if not rows:
        raise ValueError("no experiment has results in metrics/evaluate.json; run dvc repro first")
    return pd.DataFrame(rows.values()).sort_values(["model", "embedder"], ignore_index=True)


def markdown(found: pd.DataFrame) -> str:
    """The table in Markdown, the original study's figures in brackets."""
    header = ["model", "experiment", "embedder", *COLUMNS]
    lines = [" | ".join(header), " | ".join(["---"] * 3 + ["---:"] * len(COLUMNS))]
    for row in found.to_dict("records"):
        cells = [str(row[key]) for key in header[:3]]
        for name in COLUMNS:
            form = FORMS.get(name, "{:.3f}")
            cell = "–" if pd.isna(row[name]) else form.format(row[name])
            was = row.get(f"original_{name}")
            cells.append(cell if was is None or pd.isna(was) else f"{cell} ({form.format(was)})")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Print the table; with --csv, also write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    try:
        found = table(dvc.api.exp_show())
    except ValueError as error:
        sys.exit(f"error: {error}")
    if given.csv:
        write_csv(given.csv, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
