"""How well scores follow human ranks: numpy in, numbers out.

A group is one question: scores, ranks (1 = best, ties allowed) and lengths of its K answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

LENGTH_MATCH = 0.10  # relative difference up to which two answers count as equally long


@dataclass(frozen=True)
class Group:
    """One question's answers."""

    scores: Sequence[float]
    ranks: Sequence[float]
    lengths: Sequence[int]
    defects: Sequence[str] | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two answers of one question that people did not tie; the first is the better one."""

    margin: float  # score of the better minus score of the worse
    gap: int  # places between them in the question's ranking
    lengths: tuple[int, int]
    defect: str | None  # the worst fault of the worse one, where the better one has none


def pairs_of(group: Group) -> list[Pair]:
    """Every pair of a group, better answer first; ties give none."""
    places = {rank: place for place, rank in enumerate(sorted(set(group.ranks)))}
    found = []
    for i, rank_i in enumerate(group.ranks):
        for j, rank_j in enumerate(group.ranks):
            if rank_i < rank_j:
                right = group.defects is not None and group.defects[i] == "none"
                found.append(
                    Pair(
                        margin=group.scores[i] - group.scores[j],
                        gap=places[rank_j] - places[rank_i],
                        lengths=(group.lengths[i], group.lengths[j]),
                        defect=group.defects[j].split("+")[0] if right and group.defects else None,
                    )
                )
    return found


def accuracy(margins: Iterable[float]) -> float | None:
    """Share of pairs in the right order; an equal score counts half. None without pairs."""
    hits = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    return float(np.mean(hits)) if hits else None


def _top(group: Group) -> float:
    """Share of the answers with the highest score that are ranked best: 1 or 0 without ties."""
    highest = max(group.scores)
    chosen = [rank for s, rank in zip(group.scores, group.ranks, strict=True) if s == highest]
    return chosen.count(min(group.ranks)) / len(chosen)


def _correlation(groups: list[Group], statistic: Any) -> float | None:
    found = []
    for group in groups:
        if len(set(group.ranks)) > 1 and len(set(group.scores)) > 1:
            found.append(float(statistic(group.scores, [-r for r in group.ranks]).statistic))
    return float(np.mean(found)) if found else None


def _length_correlations(groups: list[Group]) -> tuple[float | None, float | None]:
    scores = np.array([s for g in groups for s in g.scores], dtype=float)
    lengths = np.array([n for g in groups for n in g.lengths], dtype=float)
    ranks = np.array([r for g in groups for r in g.ranks], dtype=float)
    # partial correlation: what is left of score and length once each rank's mean is taken out
    left_scores, left_lengths = scores.copy(), lengths.copy()
    for rank in np.unique(ranks):
        same = ranks == rank
        left_scores[same] -= scores[same].mean()
        left_lengths[same] -= lengths[same].mean()
    return _pearson(scores, lengths), _pearson(left_scores, left_lengths)


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def report(groups: list[Group]) -> dict[str, Any]:
    """The block of metrics/rm.json for these groups; a value that cannot be had is None."""
    pairs = [pair for group in groups for pair in pairs_of(group)]
    margins = np.array([pair.margin for pair in pairs])
    top = [_top(group) for group in groups]
    matched = [
        p.margin for p in pairs if abs(p.lengths[0] - p.lengths[1]) <= LENGTH_MATCH * max(p.lengths)
    ]
    correlation, given_rank = _length_correlations(groups)
    gaps = sorted({pair.gap for pair in pairs})
    defects = sorted({pair.defect for pair in pairs if pair.defect})
    some = len(pairs) > 0
    return {
        "questions": len(groups),
        "pairs": len(pairs),
        "accuracy": accuracy(margins),
        "accuracy_by_gap": {
            str(gap): accuracy(p.margin for p in pairs if p.gap == gap) for gap in gaps
        },
        "accuracy_by_kind": {
            defect: accuracy(p.margin for p in pairs if p.defect == defect) for defect in defects
        },
        "margin_mean": float(margins.mean()) if some else None,
        "margin_std": float(margins.std()) if some else None,
        "p_margin_gt_0": float((margins > 0).mean()) if some else None,
        "p_margin_gt_0_5": float((margins > 0.5).mean()) if some else None,
        "kendall_tau": _correlation(groups, kendalltau),
        "spearman_rho": _correlation(groups, spearmanr),
        "top1": float(np.mean(top)) if top else None,
        "length_only_accuracy": accuracy(p.lengths[0] - p.lengths[1] for p in pairs),
        "accuracy_length_matched": accuracy(matched),
        "length_correlation": correlation,
        "length_correlation_given_rank": given_rank,
    }
