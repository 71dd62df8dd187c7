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

from stages.rlhf.config.limits import Limits
from stages.rlhf.measure import similarity
from stages.rlhf.measure.style import STYLE_METRICS, distinct, style_values
from stages.rlhf.measure.text import answer_values, fold
from stages.rlhf.measure.win_rate import length_controlled, mean_and_interval, win_rates
from stages.rlhf.model.generation import Answer
from stages.rlhf.records import SftRow

T = TypeVar("T")

EOS_RATE = 0.99  # of PPO's answers, in the sample world

REASONS = {
    "contains": "no test row has a must_contain phrase",
    "wrong_fact_rate": "no answer to a row with a must_contain phrase commits to a value",
    "polite_rate": "no answer has a sentence whose ending tells a speech level",
    "level_consistency": "no answer has two sentences whose endings tell a speech level",
    "non_hangul_share": "no answer holds a letter",
}
DISTINCT = (1, 2)  # words of an n-gram


@dataclass(frozen=True)
class Measured:
    """One model's answers to N questions and what was measured of them."""

    answers: Sequence[Answer]  # (N,)
    scores: Sequence[float]  # (N,) of the reward model, in sd over SFT's own answers
    judged: Sequence[float]  # (N,) of the judge, in sd over its own answers
    values: pd.DataFrame  # (N, metrics)


@dataclass(frozen=True)
class Bootstrap:
    """How often questions are drawn anew, and by what seed: the same questions everywhere."""

    resamples: int
    seed: int


def measure(
    answers: Sequence[Answer],
    scores: Sequence[float],
    judged: Sequence[float],
    rows: Sequence[SftRow],
    answer_vectors: NDArray[np.floating],
    reference_vectors: NDArray[np.floating],
) -> Measured:
    """N answers, scores x 2, rows and (N, D) embeddings x 2 -> the metrics of each answer.

    Raises ValueError where their numbers differ.
    """
    parts = (answers, scores, judged, rows, answer_vectors, reference_vectors)
    counts = [len(part) for part in parts]
    if len(set(counts)) != 1:
        raise ValueError(f"answers, scores x 2, rows and embeddings x 2 differ in number: {counts}")
    near = {
        "cosine": similarity.cosine(answer_vectors, reference_vectors),
        "euclidean_distance": similarity.euclidean_distance(answer_vectors, reference_vectors),
        "euclidean_similarity": similarity.euclidean_similarity(answer_vectors, reference_vectors),
        "pearson": similarity.pearson(answer_vectors, reference_vectors),
    }
    styles = pd.DataFrame([style_values(answer.text) for answer in answers], columns=STYLE_METRICS)
    values = pd.DataFrame({**near, **answer_values(answers, rows)})
    return Measured(answers, scores, judged, values.join(styles.astype(np.float64)))


def block(values: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """The mean of each metric over the answers it speaks of, with its interval.

    Null with its reason where it speaks of none.
    """
    found: dict[str, Any] = {}
    for name in values.columns:
        column = values[name].to_numpy(dtype=np.float64)
        found |= mean_and_interval(
            str(name), column, bootstrap.resamples, bootstrap.seed, REASONS.get(name, "no answers")
        )
    return found


def variety(answers: Sequence[Answer]) -> dict[str, Any]:
    """Share of distinct n-grams over all of these answers: of none of them alone."""
    found: dict[str, Any] = {}
    for n in DISTINCT:
        share = distinct([answer.text for answer in answers], n)
        found[f"distinct_{n}"] = share
        if share is None:
            found[f"distinct_{n}_reason"] = f"no answer has {n} words"
    return found


def report(
    models: Mapping[str, Measured],
    rows: Sequence[SftRow],
    temperature: float,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """A block per model, again under by_kind where rows name a kind; SFT's gain; PPO against SFT.

    temperature: of the judge's scores.
    """
    kinds = pd.Series([row.kind for row in rows], dtype=object)
    named = {kind: (kinds == kind).to_numpy() for kind in sorted(kinds.dropna().unique())}
    found: dict[str, Any] = {"questions": len(rows)}
    everything = np.ones(len(rows), dtype=bool)

    def described(measured: Measured, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        said = [measured.answers[i] for i in np.flatnonzero(chosen).tolist()]
        return block(measured.values[chosen], bootstrap) | variety(said)

    for name, measured in models.items():
        found[name] = described(measured, everything)
        if named:
            found[name]["by_kind"] = {
                kind: described(measured, chosen) for kind, chosen in named.items()
            }
    found["sft_gain"] = gain(found["base"]["cosine"], found["sft"]["cosine"])
    two = models["ppo"], models["sft"]
    found["ppo_vs_sft"] = compared(*two, everything, temperature, bootstrap)
    if named:
        found["ppo_vs_sft"]["by_kind"] = {
            kind: compared(*two, chosen, temperature, bootstrap) for kind, chosen in named.items()
        }
    return found


def compared(
    ours: Measured,
    theirs: Measured,
    chosen: NDArray[np.bool_],
    temperature: float,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Paired differences of every metric and win rates, over the chosen questions.

    Beside the judge's win rates: that by chrF, and how often the two agree where both decide.
    """
    places = np.flatnonzero(chosen).tolist()
    resamples, seed = bootstrap.resamples, bootstrap.seed
    mine, other = (np.array(m.judged, dtype=np.float64)[places] for m in (ours, theirs))
    pairs = [(fold(ours.answers[i].text), fold(theirs.answers[i].text)) for i in places]
    same = np.array([one == two for one, two in pairs], dtype=bool)
    frames = [m.values.iloc[places] for m in (ours, theirs)]
    gaps = (frames[0]["length"] - frames[1]["length"]).to_numpy(dtype=np.float64)
    margins = np.where(same, 0.0, mine - other) / temperature
    found = win_rates(mine, other, same, resamples, seed)
    found |= length_controlled(margins, gaps, resamples, seed)
    found["ties"] = int(same.sum())
    nearer = np.sign((frames[0]["chrf"] - frames[1]["chrf"]).to_numpy(dtype=np.float64))
    liked = np.where(same, 0.0, np.sign(mine - other))
    decided = {
        "chrf_win_rate_decided": np.where(nearer == 0, np.nan, nearer > 0),
        "judge_agreement": np.where(nearer * liked == 0, np.nan, nearer == liked),
    }
    for name, outcome in decided.items():
        found |= mean_and_interval(name, outcome, resamples, seed, "all are ties")
    for name in ours.values.columns:
        column = (frames[0][name] - frames[1][name]).to_numpy(dtype=np.float64)
        reason = "no question of which both answers can be said"
        found |= mean_and_interval(f"{name}_gain", column, resamples, seed, reason)
    return found


def gates(
    found: Mapping[str, Any],
    reference_length: float,
    limits: Limits,
    rm_ok: bool,
    known_world: bool,
) -> dict[str, bool]:
    """`report` -> whether PPO may be believed; a gate that fails is a value, never a crash.

    reference_length: mean characters of the references. known_world: the sample, where EOS_RATE
    must be reached; on real data SFT's own must be. rm_ok: the gate of stage judge.
    """
    ppo, sft, pair = found["ppo"], found["sft"], found["ppo_vs_sft"]
    lows = [pair.get(f"{name}_gain_ci_low") for name in ("chrf", "cosine")]
    ends = ppo["eos_rate"] >= EOS_RATE or (not known_world and ppo["eos_rate"] >= sft["eos_rate"])
    return {
        "ppo_beats_sft": all(low is not None and low > 0 for low in lows),
        "no_repetition": all(
            ppo[k] <= sft[k] + limits.repetition_slack for k in ("repetition", "copy_rate")
        ),
        "ends": bool(ends),
        "length_in_band": abs(ppo["length"] / reference_length - 1) <= limits.length_band,
        "rm_ok": rm_ok,
    }


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
                "judged": round(float(measured.judged[i]), 6),
                "cosine": round(float(measured.values["cosine"].iloc[i]), 6),
            }
        samples.append(sample)
    return samples


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items, evenly spaced in their order; null: all of them."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
