"""What passages add: each model without any, with those found, and with the evidence gone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.rlhf.chat import cited, declines
from stages.rlhf.measure.text import contains, text_values
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.records import Response, SftRow
from stages.rlhf.report.comparison import Bootstrap

CLOSED, RAG, WITHOUT = "closed", "rag", "evidence_out"
CHECKED = "checked"  # PPO, its answers compared with the passages
TEXT = ("exact", "contains", "wrong_fact_rate")  # of what an answer says, citations aside
REASONS = {
    "wrong_fact_rate": "no answer to a row with a must_contain phrase commits to a value",
    "supported": "no answer to a row with a must_contain phrase, but refusals",
    "precision": "no answer declines",
    "recall": "no question whose evidence is gone",
}

Answers = Mapping[str, Sequence[Response]]  # by model


def plain(row: SftRow) -> SftRow:
    """The row with a reference that cites nothing."""
    return row.model_copy(update={"answer": row.spoken(row.answer)})


def closed(row: SftRow) -> SftRow:
    """The row without passages, and so with a reference that cites nothing."""
    return plain(row).model_copy(update={"passages": None})


def spoken(responses: Sequence[Response], rows: Sequence[SftRow]) -> list[Response]:
    """N responses as texts that cite nothing."""
    pairs = zip(responses, rows, strict=True)
    return [Response(row.spoken(one.text), one.tokens, one.ended) for one, row in pairs]


def values_of(responses: Sequence[Response], rows: Sequence[SftRow]) -> pd.DataFrame:
    """(N, metrics): TEXT, `declined`, and `supported`: the cited passage has the row's phrase.

    NaN where a metric is undefined: `supported` of a refusal, or of a row without a phrase.
    """
    found = text_values(spoken(responses, rows), [plain(row) for row in rows])
    columns: dict[str, Any] = {name: found[name] for name in TEXT}
    columns["declined"] = [float(declines(one.text)) for one in responses]
    columns["supported"] = [
        _supported(one.text, row) for one, row in zip(responses, rows, strict=True)
    ]
    return pd.DataFrame(columns, dtype=np.float64)


def _supported(answer: str, row: SftRow) -> float:
    if row.must_contain is None or not row.passages or declines(answer):
        return float("nan")
    number = cited(answer)
    if number is None or not 1 <= number <= len(row.passages):
        return 0.0
    return float(contains(row.passages[number - 1], row.must_contain))


def matrix(
    answers: Mapping[str, Answers], rows: Mapping[str, Sequence[SftRow]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Responses by condition and model, the rows of each condition -> blocks of metrics.

    Per condition and model: the means of `values_of` with intervals, also by_kind. Per model,
    `refusal`: recall is the share of refusals where the evidence is gone; precision the share of
    all refusals for which no passage with an answer was shown.
    """
    found: dict[str, Any] = {}
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    for condition, of_models in answers.items():
        found[condition] = {"questions": len(rows[condition])}
        kinds = np.array([row.kind or "" for row in rows[condition]])
        for model, responses in of_models.items():
            table = values_of(responses, rows[condition])
            tables[condition, model] = table
            block = _block(table, bootstrap)
            if set(kinds) - {""}:
                block["by_kind"] = {
                    kind: _block(table[kinds == kind], bootstrap)
                    for kind in sorted(set(kinds) - {""})
                }
            found[condition][model] = block
    answerable = np.array([cited(row.answer) is not None for row in rows[RAG]])
    found["refusal"] = {
        model: _refusal(tables[RAG, model], answerable, tables[WITHOUT, model], bootstrap)
        for model in answers[RAG]
    }
    return found


def _refusal(
    shown: pd.DataFrame, answerable: np.ndarray, gone: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, Any]:
    recall = gone["declined"].to_numpy(dtype=np.float64)
    refused = shown["declined"].to_numpy(dtype=np.float64) > 0
    right = np.concatenate([~answerable[refused], np.ones(int(recall.sum()), dtype=bool)])
    return _means({"precision": right.astype(np.float64), "recall": recall}, bootstrap)


def _block(table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    return _means({str(name): table[name].to_numpy() for name in table.columns}, bootstrap)


def _means(columns: Mapping[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, column in columns.items():
        reason = REASONS.get(name, "no test row has a must_contain phrase")
        found |= mean_and_interval(name, column, bootstrap.resamples, bootstrap.seed, reason)
    return found
