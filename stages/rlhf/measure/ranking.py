"""How well scores agree with human ranks: the blocks of metrics/rm.json.

A pair is two answers to one question with different human ranks. Shares are over all pairs;
Kendall's tau-b, Spearman's rho and top-1 are means over questions. The bootstrap resamples whole
questions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.rlhf.measure.bootstrap import (
    Statistic,
    Sums,
    correlation,
    correlation_given,
    interval,
    ratio,
    resampled,
    totals,
)
from stages.rlhf.measure.calibration import ece
from stages.rlhf.measure.length_bias import correct
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, Pair, accuracy, check, hits_of, pairs_of
from stages.rlhf.records import LengthUnit

LENGTH_MATCH = 0.10  # relative difference up to which two lengths count as equal
NO_PAIRS = "no two answers of one question differ in rank"
NO_TOKENS = "no lengths in tokens"
NO_ORDER = "no question has both different ranks and different scores"
NO_SPREAD = "scores or lengths do not differ"
NO_SPREAD_WITHIN_RANK = "scores or lengths do not differ between answers of one rank"

# key -> the statistic as a function of sums, and the reason if it is undefined
STATISTICS: dict[str, tuple[Statistic, str]] = {
    "accuracy": (lambda t: ratio(t["hits"], t["pairs"]), NO_PAIRS),
    "length_only_accuracy": (lambda t: ratio(t["longer"], t["pairs"]), NO_PAIRS),
    "accuracy_above_length": (lambda t: ratio(t["hits"] - t["longer"], t["pairs"]), NO_PAIRS),
    "accuracy_length_matched": (
        lambda t: ratio(t["matched_hits"], t["matched"]),
        f"no pair is within {LENGTH_MATCH:.0%} in length",
    ),
    "kendall_tau": (lambda t: ratio(t["tau"], t["ordered"]), NO_ORDER),
    "spearman_rho": (lambda t: ratio(t["rho"], t["ordered"]), NO_ORDER),
    "top1": (lambda t: ratio(t["top"], t["has_pairs"]), NO_PAIRS),
    "length_correlation": (correlation, NO_SPREAD),
    "length_correlation_given_rank": (correlation_given, NO_SPREAD_WITHIN_RANK),
}
RANKING = tuple(key for key in STATISTICS if not key.startswith("length_correlation"))
BY_LENGTH = ("length_correlation", "length_correlation_given_rank")


def tau_and_rho(group: Group) -> tuple[float, float] | None:
    """Kendall's tau-b and Spearman's rho of scores and -ranks.

    With S, R the (K, K) signs of the differences in score and in -rank, tau-b is
    sum SR / sqrt(sum SS * sum RR). The row sums of S are twice the centred average ranks, whose
    Pearson correlation is rho. None if all scores or all ranks are equal.
    """
    scores, quality = np.asarray(group.scores, float), -np.asarray(group.ranks, float)
    s, r = (np.sign(v[:, None] - v[None, :]) for v in (scores, quality))
    if not s.any() or not r.any():
        return None
    u, v = s.sum(1), r.sum(1)
    tau = (s * r).sum() / np.sqrt((s * s).sum() * (r * r).sum())
    return float(tau), float((u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum()))


def _top(group: Group) -> float:
    """Share of the top-scoring answers that are ranked best; without ties, 1 or 0."""
    highest = max(group.scores)
    chosen = [rank for s, rank in zip(group.scores, group.ranks, strict=True) if s == highest]
    return chosen.count(min(group.ranks)) / len(chosen)


def _ranking_sums(groups: Sequence[Group], pairs: Sequence[Sequence[Pair]]) -> Sums:
    """(Q,) per question: counts of pairs, and its rank correlations."""
    rows = []
    for group, found in zip(groups, pairs, strict=True):
        hits = hits_of(p.margin for p in found)
        longer = hits_of(p.lengths[0] - p.lengths[1] for p in found)
        matched = np.array(
            [abs(p.lengths[0] - p.lengths[1]) <= LENGTH_MATCH * max(p.lengths) for p in found],
            dtype=bool,
        )
        has_pairs, order = len(found) > 0, tau_and_rho(group)
        rows.append(
            {
                "pairs": len(found),
                "hits": hits.sum(),
                "longer": longer.sum(),
                "matched": matched.sum(),
                "matched_hits": hits[matched].sum(),
                "has_pairs": has_pairs,
                "top": _top(group) if has_pairs else 0.0,
                "ordered": order is not None,
                "tau": order[0] if order else 0.0,
                "rho": order[1] if order else 0.0,
            }
        )
    names = rows[0] if rows else ()
    return {name: np.array([row[name] for row in rows], dtype=float) for name in names}


def _length_sums(groups: Sequence[Group], unit: LengthUnit) -> Sums:
    """Per question, the sums for `correlation_given`: x score, y length, classes ranks."""
    if not groups:
        return {}
    ranks = np.unique([r for g in groups for r in g.ranks])
    # Centred first, to avoid cancellation between squares of large numbers.
    x_mean = np.mean([s for g in groups for s in g.scores])
    y_mean = np.mean([n for g in groups for n in g.sizes(unit)])
    rows = []
    for group in groups:
        x = np.asarray(group.scores, float) - x_mean
        y = np.asarray(group.sizes(unit), float) - y_mean
        same = (np.asarray(group.ranks)[:, None] == ranks).astype(float)  # (K, C)
        rows.append((same.sum(0), x @ same, y @ same, x @ x, y @ y, x @ y))
    columns = zip(*rows, strict=True)
    return dict(zip(("n", "x", "y", "xx", "yy", "xy"), map(np.array, columns), strict=True))


def _known(key: str, value: float | None, reason: str) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def _measured(
    sums: Sums, keys: Sequence[str], resamples: int, seed: int, suffix: str = ""
) -> dict[str, Any]:
    """STATISTICS[key] as `<key><suffix>`, with its interval if resamples > 0."""
    questions = len(next(iter(sums.values()))) if sums else 0
    whole, draws = totals(sums), resampled(sums, resamples, seed) if resamples else {}
    found: dict[str, Any] = {}
    for key in keys:
        statistic, reason = STATISTICS[key]
        reason = reason if questions else "no questions"
        value = float(statistic(whole)[0]) if questions else np.nan
        there = bool(np.isfinite(value))
        found |= _known(f"{key}{suffix}", value if there else None, reason)
        if resamples:
            ends = interval(statistic(draws)) if there and questions > 1 else None
            reason = "too few questions to resample" if there else reason
            found |= _known(f"{key}{suffix}_ci_low", ends[0] if ends else None, reason)
            found |= _known(f"{key}{suffix}_ci_high", ends[1] if ends else None, reason)
    return found


def _length_correlations(groups: Sequence[Group], resamples: int, seed: int) -> dict[str, Any]:
    found = _measured(_length_sums(groups, "characters"), BY_LENGTH, resamples, seed)
    if all(group.tokens is not None for group in groups):
        sums = _length_sums(groups, "tokens")
        return found | _measured(sums, BY_LENGTH, resamples, seed, "_tokens")
    for key in BY_LENGTH:
        for name in ("", "_ci_low", "_ci_high") if resamples else ("",):
            found |= _known(f"{key}_tokens{name}", None, NO_TOKENS)
    return found


def report(
    groups: Sequence[Group], temperature: float = 1.0, resamples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """The block of metrics/rm.json for these groups.

    temperature: of the probabilities that `ece` evaluates. resamples: of the bootstrap behind
    `<key>_ci_low` and `<key>_ci_high`; 0 omits the intervals. An undefined value is None, with
    `<key>_reason`. Margin statistics are over all pairs.
    Raises ValueError naming the question with invalid numbers.
    """
    check(groups)
    by_question = [pairs_of(group) for group in groups]
    pairs = [pair for found in by_question for pair in found]
    margins = np.array([pair.margin for pair in pairs], dtype=float)
    some = len(pairs) > 0
    shares = {
        "margin_mean": margins.mean() if some else None,
        "margin_std": margins.std() if some else None,
        "p_margin_gt_0": (margins > 0).mean() if some else None,
        "p_margin_gt_0_5": (margins > 0.5).mean() if some else None,
        "ece": ece(margins, temperature),
    }
    block: dict[str, Any] = {
        "questions": len(groups),
        "questions_without_pairs": sum(not found for found in by_question),
        "pairs": len(pairs),
    }
    block |= _measured(_ranking_sums(groups, by_question), RANKING, resamples, seed)
    block["accuracy_by_gap"] = {
        str(gap): accuracy(p.margin for p in pairs if p.gap == gap)
        for gap in sorted({p.gap for p in pairs})
    }
    block["accuracy_by_kind"] = {
        defect: accuracy(p.margin for p in pairs if p.defect == defect)
        for defect in sorted({p.defect for p in pairs if p.defect})
    }
    for key, value in shares.items():
        block |= _known(key, None if value is None else float(value), NO_PAIRS)
    return block | _length_correlations(groups, resamples, seed)


def full_report(
    groups: Sequence[Group],
    curve: LengthCurve,
    temperature: float,
    temperature_corrected: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """metrics/rm.json: the block, `length_corrected` (scores minus the curve), by_kind of both.

    Raw and corrected scores share their resamples, so that their intervals are comparable.
    """

    def both(chosen: Sequence[Group]) -> dict[str, Any]:
        corrected = correct(chosen, curve)
        return report(chosen, temperature, resamples, seed) | {
            "length_corrected": report(corrected, temperature_corrected, resamples, seed)
        }

    kinds = sorted({group.kind for group in groups if group.kind})
    return both(groups) | {
        "by_kind": {kind: both([g for g in groups if g.kind == kind]) for kind in kinds}
    }
