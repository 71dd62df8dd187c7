"""Descriptive tables of the data: shares, lengths, ranks. No plotting here.

Lengths are in characters (NFC, as preprocess writes them), independent of any tokenizer. Tables
have a fixed order, so that the same rows give the same CSV.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.rlhf.records import PromptRow, RmRow, SftRow, read_rows

SCHEMAS: dict[str, type[PromptRow]] = {"sft": SftRow, "rm": RmRow, "ppo": PromptRow}
SPLITS = ("train", "validation", "test")
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
MISSING = "(없음)"  # the row names no category
OTHERS = "(그 외)"  # categories beyond the top ones; 기타 is a category of AI-Hub


def read_parts(folder: Path) -> dict[str, dict[str, list[PromptRow]]]:
    """{part: {split: rows}} of data/preprocess.

    Raises ValueError naming the file that is missing or malformed.
    """
    return {
        part: {split: read_rows(folder / part / f"{split}.jsonl", schema) for split in SPLITS}
        for part, schema in SCHEMAS.items()
    }


def item_table(parts: Mapping[str, Mapping[str, Sequence[PromptRow]]]) -> pd.DataFrame:
    """Items per part and split, and each part's share of all training items."""
    table = pd.DataFrame(
        [{"part": part, **{s: len(rows[s]) for s in SPLITS}} for part, rows in parts.items()]
    )
    total = int(table["train"].sum())
    table["train_share"] = table["train"] / total if total else 0.0
    return table


def question_lengths(rows: Sequence[PromptRow]) -> np.ndarray:
    """(N,) characters per question."""
    return np.array([len(row.question) for row in rows], dtype=float)


def answer_lengths(rows: Sequence[PromptRow]) -> np.ndarray:
    """(N,) characters per answer: one per SFT row, all of an RM row, none for a prompt."""
    texts = [
        text
        for row in rows
        for text in (
            [row.answer]
            if isinstance(row, SftRow)
            else row.answers
            if isinstance(row, RmRow)
            else []
        )
    ]
    return np.array([len(text) for text in texts], dtype=float)


def summary(lengths: np.ndarray) -> dict[str, float]:
    """count, mean, p5 .. p99 (linear interpolation) and max; only the count if empty."""
    if not len(lengths):
        return {"count": 0}
    quantiles = {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}
    return {
        "count": len(lengths),
        "mean": float(lengths.mean()),
        **quantiles,
        "max": float(lengths.max()),
    }


def bin_table(series: Mapping[str, np.ndarray], edges: np.ndarray) -> pd.DataFrame:
    """Columns low, high, and per series the share of values in [low, high), the last bin closed.

    Values outside the edges count in the outer bins, so that shares sum to 1.
    """
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
    for name, values in series.items():
        inside = np.clip(values, edges[0], edges[-1])
        counts = np.histogram(inside, edges)[0]
        table[name] = counts / max(len(values), 1)
    return table


def even_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of about `bins` bins over the values, with width 1, 2 or 5 times a power of ten.

    Every edge is a multiple of the width, so that two commits with a similar range have the same
    bins and can be overlaid. Also valid for no values, or a single one.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high), 1):
        span = max(abs(low), abs(high), 1.0)
        bins = 1
    rough = span / bins
    power = 10.0 ** np.floor(np.log10(rough))
    width = power * next(step for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = np.floor(low / width), np.ceil(high / width)
    return np.round(np.arange(first, max(last, first + 1) + 1) * width, 10)


def length_edges(lengths: np.ndarray, bins: int = 40) -> np.ndarray:
    """Edges from 0 to the 99th percentile; the long tail goes into the last bin."""
    top = float(np.quantile(lengths, 0.99)) if len(lengths) else 1.0
    width = max(1, int(np.ceil(top / bins)))
    return np.arange(0, (int(top // width) + 2) * width, width, dtype=float)


def rank_table(rows: Sequence[RmRow]) -> pd.DataFrame:
    """Per rank value: answers, their share, and their mean, median and P95 length."""
    frame = pd.DataFrame(
        [
            (rank, len(answer))
            for row in rows
            for rank, answer in zip(row.ranks, row.answers, strict=True)
        ],
        columns=["rank", "length"],
    ).astype(float)
    grouped = frame.groupby("rank")["length"]
    table = pd.DataFrame(
        {
            "answers": grouped.size(),
            "share": grouped.size() / max(len(frame), 1),
            "mean_length": grouped.mean(),
            "median_length": grouped.median(),
            "p95_length": grouped.quantile(0.95),
        }
    ).reset_index()
    table["rank"] = [f"{rank:g}" for rank in table["rank"]]
    return table


def tied_share(rows: Sequence[RmRow]) -> float | None:
    """Share of groups with at least two answers of equal rank; None without groups."""
    if not rows:
        return None
    return sum(len(set(row.ranks)) < len(row.ranks) for row in rows) / len(rows)


def label_table(parts: Mapping[str, Sequence[PromptRow]], field: str, top: int) -> pd.DataFrame:
    """Shares of a field's values per part: the `top` by mean share, then others and missing ones.

    `field` is "category" or "question_type". Shares of each part sum to 1; ties sort by name.
    """
    shares = pd.DataFrame(
        {
            part: pd.Series([getattr(row, field) or MISSING for row in rows], dtype=object)
            .value_counts(normalize=True)
            .astype(float)
            for part, rows in parts.items()
        }
    ).fillna(0.0)
    named = shares.drop(index=MISSING, errors="ignore")
    order = sorted(named.index, key=lambda label: (-round(named.loc[label].mean(), 12), label))
    table = named.loc[order[:top]]
    rest = named.loc[order[top:]]
    if len(rest):
        table = pd.concat([table, pd.DataFrame([rest.sum()], index=[OTHERS])])
    if MISSING in shares.index:
        table = pd.concat([table, shares.loc[[MISSING]]])
    return table.rename_axis(field).reset_index()


def shares_of(table: pd.DataFrame, field: str, parts: Sequence[str]) -> dict[str, Any]:
    """{part: {label: share}} of a label table; null with a reason for a part without labels."""
    shares: dict[str, Any] = {}
    for part in parts:
        column = dict(zip(table[field], table[part], strict=True))
        named = {label: share for label, share in column.items() if share > 0}
        if set(named) <= {MISSING}:
            shares[part] = None
            shares[f"{part}_reason"] = f"no training row of {part} names its {field}"
        else:
            shares[part] = named
    return shares
