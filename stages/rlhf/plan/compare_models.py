"""Comparison of base models: SFT's similarity to the references, and its gain over the base model.

Rows are the workspace and all finished experiments, one per model and embedder: cosines of
different embedders are not comparable, so the embedder's hash is shown. The figures of the original
study are in brackets, from other data and another embedder; its "euclidean" is the similarity
1 / (1 + distance).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from stages.rlhf.plan.experiments import all_metrics, finished, value

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


class Run(NamedTuple):
    """An experiment, its base model, and the metrics of stage evaluate."""

    experiment: str
    model: str
    metrics: Mapping[str, Any]


def finished_runs() -> list[Run]:
    """The workspace and all finished experiments on HEAD that have metrics of stage evaluate.

    Raises ValueError outside a repository of git and DVC.
    """
    found = []
    for row in tqdm(finished(), desc="read experiments", unit="", delay=1, leave=False):
        metrics = all_metrics("evaluate", row["rev"])
        if value(metrics, COLUMNS["cosine"]) is not None:
            assert metrics is not None
            found.append(Run(row["Experiment"] or row["rev"], row["model"], metrics))
    return found


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per model and embedder, the last one that ran. Raises ValueError without any run."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for experiment, model, metrics in runs:
        embedder = str(metrics.get("embedder_sha256") or "")[:8]
        original = dict(zip(ORIGINAL_COLUMNS, ORIGINAL.get(model, ()), strict=False))
        rows[model, embedder] = {
            "model": model,
            "experiment": experiment,
            "embedder": embedder,
            **{name: value(metrics, key) for name, key in COLUMNS.items()},
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
