"""Base, SFT and PPO against the references of the test questions: N questions, D dimensions.

Every metric is first a number per question, NaN where it says nothing of that answer; a block of
metrics is the mean of each, so that intervals can be drawn by resampling questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.rlhf import similarity
from stages.rlhf.generation import Answer
from stages.rlhf.records import SftRow
from stages.rlhf.text_metrics import answer_values

T = TypeVar("T")

REASONS = {
    "contains": "no test row has a must_contain phrase",
    "wrong_fact_rate": "no answer to a row with a must_contain phrase commits to a value",
}


@dataclass(frozen=True)
class Measured:
    """One model's answers to N questions and what was measured of them."""

    answers: Sequence[Answer]  # (N,)
    scores: Sequence[float]  # (N,) of the reward model, in sd over SFT's own answers
    values: pd.DataFrame  # (N, metrics)


def measure(
    answers: Sequence[Answer],
    scores: Sequence[float],
    rows: Sequence[SftRow],
    answer_vectors: NDArray[np.floating],
    reference_vectors: NDArray[np.floating],
) -> Measured:
    """N answers, scores, rows and (N, D) embeddings x 2 -> the metrics of each answer.

    Raises ValueError where their numbers differ.
    """
    counts = [len(part) for part in (answers, scores, rows, answer_vectors, reference_vectors)]
    if len(set(counts)) != 1:
        raise ValueError(f"answers, scores, rows and embeddings differ in number: {counts}")
    near = {
        "cosine": similarity.cosine(answer_vectors, reference_vectors),
        "euclidean_distance": similarity.euclidean_distance(answer_vectors, reference_vectors),
        "euclidean_similarity": similarity.euclidean_similarity(answer_vectors, reference_vectors),
        "pearson": similarity.pearson(answer_vectors, reference_vectors),
    }
    return Measured(answers, scores, pd.DataFrame({**near, **answer_values(answers, rows)}))


def block(values: pd.DataFrame) -> dict[str, Any]:
    """The mean of each metric over the answers it speaks of; null with its reason where none."""
    found: dict[str, Any] = {}
    for name in values.columns:
        known = values[name].dropna()
        found[name] = float(known.mean()) if len(known) else None
        if not len(known):
            found[f"{name}_reason"] = REASONS.get(name, "no answers")
    return found


def report(models: Mapping[str, Measured], rows: Sequence[SftRow]) -> dict[str, Any]:
    """A block per model, again under by_kind where rows name a kind, and SFT's gain over base."""
    kinds = pd.Series([row.kind for row in rows], dtype=object)
    found: dict[str, Any] = {"questions": len(rows)}
    for name, measured in models.items():
        found[name] = block(measured.values)
        if kinds.notna().any():
            found[name]["by_kind"] = {
                kind: block(measured.values[kinds == kind])
                for kind in sorted(kinds.dropna().unique())
            }
    return {**found, "sft_gain": gain(found["base"]["cosine"], found["sft"]["cosine"])}


def gain(base: float | None, sft: float | None) -> dict[str, Any]:
    """What SFT adds to the base model's mean cosine, and that in percent of it."""
    if base is None or sft is None:
        reason = "no answers"
        return {"cosine": None, "cosine_reason": reason, "percent": None, "percent_reason": reason}
    found: dict[str, Any] = {"cosine": sft - base}
    if base > 0:
        return {**found, "percent": 100 * (sft - base) / base}
    reason = f"the base model's mean cosine is {base:.3g}, not above 0"
    return {**found, "percent": None, "percent_reason": reason}


def sample_rows(models: Mapping[str, Measured], rows: Sequence[SftRow]) -> list[dict[str, Any]]:
    """One row per question: question, reference, and answer, score, cosine of each model."""
    samples = []
    for i, row in enumerate(rows):
        sample: dict[str, Any] = {"id": row.id, "question": row.question, "reference": row.answer}
        if row.kind is not None:
            sample["kind"] = row.kind
        for name, measured in models.items():
            sample[name] = {
                "answer": measured.answers[i].text,
                "score": round(float(measured.scores[i]), 6),
                "cosine": round(float(measured.values["cosine"].iloc[i]), 6),
            }
        samples.append(sample)
    return samples


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items, evenly spaced in their order; null: all of them."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
