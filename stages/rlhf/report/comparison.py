"""Comparison of base, SFT and PPO with the references: N test questions, D dimensions.

Every metric is a number per question, NaN where undefined; a block of metrics contains their means,
with intervals from resampling questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.rlhf.config.limits import Limits
from stages.rlhf.measure.style import STYLE_METRICS, distinct, style_values
from stages.rlhf.measure.text import fold, text_values
from stages.rlhf.measure.win_rate import length_controlled, mean_and_interval, win_rates
from stages.rlhf.model import similarity
from stages.rlhf.records import Response, SftRow

T = TypeVar("T")

EOS_RATE = 0.99  # required of PPO's responses in the sample world

REASONS = {
    "contains": "no test row has a must_contain phrase",
    "wrong_fact_rate": "no answer to a row with a must_contain phrase commits to a value",
    "polite_rate": "no answer has a sentence whose ending tells a speech level",
    "level_consistency": "no answer has two sentences whose endings tell a speech level",
    "non_hangul_share": "no answer holds a letter",
}
DISTINCT = (1, 2)  # n of the word n-grams
GRADERS = {"cosine_gain": 0.0, "win_rate_decided": 0.5}  # of PPO; the value of equality
WIN_RATES = ("win_rate", "win_rate_decided", "win_rate_length_controlled")  # the judge's


@dataclass(frozen=True)
class Measured:
    """One model's responses to N questions, with scores and metrics."""

    responses: Sequence[Response]  # (N,)
    scores: Sequence[float]  # (N,) of the reward model, in sd of SFT's own responses
    judge_scores: Sequence[float]  # (N,) of the judge, in sd of its validation answers
    values: pd.DataFrame  # (N, metrics)


@dataclass(frozen=True)
class Bootstrap:
    """Number of resamples and their seed, shared by all intervals, which makes them paired."""

    resamples: int
    seed: int


def measure(
    responses: Sequence[Response],
    scores: Sequence[float],
    judge_scores: Sequence[float],
    rows: Sequence[SftRow],
    response_vectors: NDArray[np.floating],
    reference_vectors: NDArray[np.floating],
) -> Measured:
    """N responses, scores x 2, rows and (N, D) embeddings x 2 -> the metrics of each response.

    Raises ValueError if their lengths differ.
    """
    parts = (responses, scores, judge_scores, rows, response_vectors, reference_vectors)
    counts = [len(part) for part in parts]
    if len(set(counts)) != 1:
        raise ValueError(
            f"responses, scores x 2, rows and embeddings x 2 differ in number: {counts}"
        )
    similarities = {
        "cosine": similarity.cosine(response_vectors, reference_vectors),
        "euclidean_distance": similarity.euclidean_distance(response_vectors, reference_vectors),
        "euclidean_similarity": similarity.euclidean_similarity(
            response_vectors, reference_vectors
        ),
        "pearson": similarity.pearson(response_vectors, reference_vectors),
    }
    styles = pd.DataFrame([style_values(r.text) for r in responses], columns=STYLE_METRICS)
    values = pd.DataFrame({**similarities, **text_values(responses, rows)})
    return Measured(responses, scores, judge_scores, values.join(styles.astype(np.float64)))


def block(values: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """The mean of each metric over the responses where it is defined, with its interval.

    Null with a reason if it is defined for none.
    """
    found: dict[str, Any] = {}
    for name in values.columns:
        column = values[name].to_numpy(dtype=np.float64)
        found |= mean_and_interval(
            str(name), column, bootstrap.resamples, bootstrap.seed, REASONS.get(name, "no answers")
        )
    return found


def diversity(responses: Sequence[Response]) -> dict[str, Any]:
    """Share of distinct n-grams over all of these responses together."""
    found: dict[str, Any] = {}
    for n in DISTINCT:
        share = distinct([response.text for response in responses], n)
        found[f"distinct_{n}"] = share
        if share is None:
            found[f"distinct_{n}_reason"] = f"no answer has {n} words"
    return found


def report(
    models: Mapping[str, Measured],
    rows: Sequence[SftRow],
    temperature: float,
    bootstrap: Bootstrap,
    judge_doubt: str | None = None,
) -> dict[str, Any]:
    """A block per model, also by_kind if rows name a kind; SFT's gain over base; PPO against SFT.

    temperature: calibration of the judge's scores. judge_doubt: why its word counts for nothing.
    """
    kinds = pd.Series([row.kind for row in rows], dtype=object)
    named = {kind: (kinds == kind).to_numpy() for kind in sorted(kinds.dropna().unique())}
    found: dict[str, Any] = {"questions": len(rows)}
    everything = np.ones(len(rows), dtype=bool)

    def described(measured: Measured, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        responses = [measured.responses[i] for i in np.flatnonzero(chosen).tolist()]
        return block(measured.values[chosen], bootstrap) | diversity(responses)

    for name, measured in models.items():
        found[name] = described(measured, everything)
        if named:
            found[name]["by_kind"] = {
                kind: described(measured, chosen) for kind, chosen in named.items()
            }
    found["sft_gain"] = gain(found["base"]["cosine"], found["sft"]["cosine"])
    two = models["ppo"], models["sft"]
    compare = partial(
        compared, *two, temperature=temperature, bootstrap=bootstrap, judge_doubt=judge_doubt
    )
    found["ppo_vs_sft"] = compare(everything)
    if named:
        by_kind = {kind: compare(chosen) for kind, chosen in named.items()}
        found["ppo_vs_sft"]["by_kind"] = by_kind
    return found


def compared(
    ours: Measured,
    theirs: Measured,
    chosen: NDArray[np.bool_],
    temperature: float,
    bootstrap: Bootstrap,
    judge_doubt: str | None = None,
) -> dict[str, Any]:
    """Paired differences of every metric, and win rates, over the chosen questions.

    Win rates by the judge and by chrF, and how often the two agree if both decide. Where the
    judge's word counts for nothing, its win rates are null with that reason.
    """
    indices = np.flatnonzero(chosen).tolist()
    resamples, seed = bootstrap.resamples, bootstrap.seed
    mine, other = (np.array(m.judge_scores, dtype=np.float64)[indices] for m in (ours, theirs))
    pairs = [(fold(ours.responses[i].text), fold(theirs.responses[i].text)) for i in indices]
    same = np.array([one == two for one, two in pairs], dtype=bool)
    frames = [m.values.iloc[indices] for m in (ours, theirs)]
    gaps = (frames[0]["length"] - frames[1]["length"]).to_numpy(dtype=np.float64)
    margins = np.where(same, 0.0, mine - other) / temperature
    found = win_rates(mine, other, same, resamples, seed)
    found |= length_controlled(margins, gaps, resamples, seed)
    if judge_doubt:
        found = {}
        for name in WIN_RATES:
            found |= {name: None, f"{name}_reason": judge_doubt}
    found["ties"] = int(same.sum())
    by_chrf = np.sign((frames[0]["chrf"] - frames[1]["chrf"]).to_numpy(dtype=np.float64))
    by_judge = np.where(same, 0.0, np.sign(mine - other))
    decided = {
        "chrf_win_rate_decided": np.where(by_chrf == 0, np.nan, by_chrf > 0),
        "judge_agreement": np.where(by_chrf * by_judge == 0, np.nan, by_chrf == by_judge),
    }
    for name, outcome in decided.items():
        found |= mean_and_interval(name, outcome, resamples, seed, "all are ties")
    for name in ours.values.columns:
        column = (frames[0][name] - frames[1][name]).to_numpy(dtype=np.float64)
        reason = "no question where it is defined for both responses"
        found |= mean_and_interval(f"{name}_gain", column, resamples, seed, reason)
    return found


def gates(
    found: Mapping[str, Any],
    reference_length: float,
    limits: Limits,
    rm_ok: bool | None,
    known_world: bool,
    judge_doubt: str | None = None,
) -> dict[str, Any]:
    """`report` -> whether PPO's gain is credible; a failed gate is a value, not an error.

    reference_length: mean characters of the references. known_world: the sample data, where
    EOS_RATE is required; other data require SFT's rate minus the slack. rm_ok: the gate before PPO,
    None where it is unknown because of `judge_doubt`.
    """
    ppo, sft, pair = found["ppo"], found["sft"], found["ppo_vs_sft"]
    required = EOS_RATE if known_world else min(EOS_RATE, sft["eos_rate"] - limits.eos_slack)
    ends = ppo["eos_rate"] >= required
    return {
        "ppo_beats_sft": beats(pair),
        "no_repetition": all(
            ppo[k] <= sft[k] + limits.repetition_slack for k in ("repetition", "copy_rate")
        ),
        "ends": bool(ends),
        "length_in_band": abs(ppo["length"] / reference_length - 1) <= limits.length_band,
        "rm_ok": rm_ok,
        **({"rm_ok_reason": judge_doubt} if rm_ok is None else {}),
    }


def beats(pair: Mapping[str, Any]) -> bool:
    """Whether a metric of GRADERS finds PPO clearly better than SFT, and none clearly worse.

    Clearly: by its 95 % interval. Not chrF, which chose PPO's update on validation. The judge's
    rate is null, and says nothing, where the judge's word counts for nothing.
    """
    ends = [
        (pair[f"{name}_ci_low"] - equal, pair[f"{name}_ci_high"] - equal)
        for name, equal in GRADERS.items()
        if pair.get(f"{name}_ci_low") is not None
    ]
    return any(low > 0 for low, _ in ends) and all(high >= 0 for _, high in ends)


def gates_that(verdicts: Mapping[str, Any], passed: bool | None) -> list[str]:
    """Names of the gates that passed, failed, or (None) are unknown."""
    return [name for name, value in verdicts.items() if value is passed]


def gates_line(verdicts: Mapping[str, Any]) -> str:
    """The gates that failed and those that are unknown, with the reason."""
    failed = ", ".join(gates_that(verdicts, False)) or "none"
    unknown = [f"{name} ({verdicts[f'{name}_reason']})" for name in gates_that(verdicts, None)]
    return f"gates that failed: {failed}" + "".join(f"; unknown: {one}" for one in unknown)


def gain(base: float | None, sft: float | None) -> dict[str, Any]:
    """SFT's gain in mean cosine over the base model, absolute and in percent."""
    if base is None or sft is None:
        reason = "no answers"
        return {"cosine": None, "cosine_reason": reason, "percent": None, "percent_reason": reason}
    found: dict[str, Any] = {"cosine": sft - base}
    if base > 0:
        return {**found, "percent": 100 * (sft - base) / base}
    reason = f"the base model's mean cosine is {base:.3g}, not above 0"
    return {**found, "percent": None, "percent_reason": reason}


def sample_rows(models: Mapping[str, Measured], rows: Sequence[SftRow]) -> list[dict[str, Any]]:
    """One row per question: reference, and each model's answer, scores and cosine."""
    samples = []
    for i, row in enumerate(rows):
        sample: dict[str, Any] = {"id": row.id, "question": row.question, "reference": row.answer}
        if row.kind is not None:
            sample["kind"] = row.kind
        for name, measured in models.items():
            sample[name] = {
                "answer": measured.responses[i].text,
                "score": round(float(measured.scores[i]), 6),
                "judged": round(float(measured.judge_scores[i]), 6),
                "cosine": round(float(measured.values["cosine"].iloc[i]), 6),
            }
        samples.append(sample)
    return samples


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items, evenly spaced, in order; None: all of them."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
