"""Figures 9-12 of the original study and the reliability diagram, each with its table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.rlhf.measure.calibration import ece, reliability
from stages.rlhf.measure.length_bias import correct
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, accuracy, margins_of
from stages.rlhf.measure.ranking import tau_and_rho
from stages.rlhf.records import LengthUnit
from stages.rlhf.report import figures
from stages.rlhf.report.tables import bin_table, even_edges

NAMES = {"score": "보정 전", "corrected": "보정 후"}  # before, after length correction
UNITS: dict[LengthUnit, str] = {"characters": "글자 수", "tokens": "토큰 수"}
MAX_POINTS = 3000  # above, the scatter plot becomes a density
LENGTH_BINS = 20
MARGIN_BINS = 40
MAX_CELLS = 10  # ranks up to which the heat map shows numbers
PAIRS_SHARE = "답변 쌍의 비중 (%)"


def draw_all(groups: Sequence[Group], curve: LengthCurve, temperature: float, out: Path) -> None:
    """All figures, as PNG and CSV. Raises ValueError without groups."""
    if not groups:
        raise ValueError("no groups to draw: expected at least one")
    corrected = correct(groups, curve)
    raw_margins, corrected_margins = margins_of(groups), margins_of(corrected)
    draw_score_length(groups, corrected, curve, out / "9_score_length")
    draw_rank_correlation(groups, out / "10_rank_correlation")
    draw_margins({"score": raw_margins}, "선호 차이 점수의 분포", out / "11_margins")
    draw_margins(
        {"score": raw_margins, "corrected": corrected_margins},
        "길이 보정 전후의 선호 차이 점수",
        out / "12_margins_corrected",
    )
    draw_reliability(raw_margins, temperature, out / "reliability")


def length_table(
    groups: Sequence[Group], corrected: Sequence[Group], curve: LengthCurve
) -> pd.DataFrame:
    """Means of length, scores and curve in at most LENGTH_BINS bins of equal count."""
    frame = pd.DataFrame(
        {
            "length": [n for g in groups for n in g.sizes(curve.unit)],
            "score": [s for g in groups for s in g.scores],
            "corrected": [s for g in corrected for s in g.scores],
        }
    ).astype(float)
    frame["curve"] = curve.at(frame["length"].to_numpy())
    edges = np.unique(np.quantile(frame["length"], np.linspace(0, 1, LENGTH_BINS + 1)))
    at = np.clip(np.searchsorted(edges, frame["length"], side="right") - 1, 0, len(edges) - 2)
    grouped = frame.groupby(np.maximum(at, 0))
    table = grouped.agg(
        low=("length", "min"),
        high=("length", "max"),
        answers=("length", "size"),
        length=("length", "mean"),
        score=("score", "mean"),
        corrected=("corrected", "mean"),
        curve=("curve", "mean"),
    )
    return table.reset_index(drop=True)


def draw_score_length(
    groups: Sequence[Group], corrected: Sequence[Group], curve: LengthCurve, path: Path
) -> None:
    """Figure 9: score against length with the fitted curve, before and after correction."""
    table = length_table(groups, corrected, curve)
    lengths = np.array([n for g in groups for n in g.sizes(curve.unit)], dtype=float)
    top = max(float(np.quantile(lengths, 0.995)), lengths.min() + 1)  # without the long tail
    figure, panels = figures.new_figure("답변 길이와 보상 점수", columns=2, width=11, height=4.4)
    clouds = {"score": groups, "corrected": corrected}
    line = np.linspace(lengths.min(), top, 200)
    for axes, (column, chosen) in zip(panels, clouds.items(), strict=True):
        scores = np.array([s for g in chosen for s in g.scores], dtype=float)
        _cloud(axes, lengths, scores, top)
        level = np.zeros_like(line) if column == "corrected" else curve.at(line)
        axes.plot(
            line,
            scores.mean() + level,
            color=figures.PALETTE[4],
            linewidth=2.2,
            label="길이 곡선 (질문·순위 효과 제외)" if column == "score" else "전체 평균",
        )
        shown = table[table["length"] <= top]
        figures.means(axes, shown["length"].to_numpy(), shown[column].to_numpy())
        axes.set_title(NAMES[column], loc="right")
        axes.set_xlabel(f"답변의 {UNITS[curve.unit]}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    panels[0].set_ylabel("보상 점수")
    figures.share_axes(panels)
    figures.save_with_table(figure, table, path)


def _cloud(axes: Axes, lengths: np.ndarray, scores: np.ndarray, top: float) -> None:
    inside = lengths <= top
    if inside.sum() <= MAX_POINTS:
        axes.scatter(
            lengths[inside], scores[inside], s=8, alpha=0.35, linewidths=0, color=figures.PALETTE[0]
        )
    else:
        axes.hexbin(
            lengths[inside], scores[inside], gridsize=45, mincnt=1, cmap="Blues", bins="log"
        )


def rank_table(groups: Sequence[Group]) -> pd.DataFrame:
    """(human rank, model rank) -> number of answers, and their share of the human rank; 1 = best.

    Human ranks are dense (ties share one); answers with equal scores are split over their ranks.
    """
    counts: dict[tuple[int, int], float] = {}
    for group in groups:
        human = np.unique(group.ranks, return_inverse=True)[1] + 1
        scores = np.asarray(group.scores, dtype=float)
        for rank, score in zip(human.tolist(), scores, strict=True):
            first, ties = int((scores > score).sum()) + 1, int((scores == score).sum())
            for model in range(first, first + ties):
                counts[rank, model] = counts.get((rank, model), 0.0) + 1 / ties
    size = max(max(cell) for cell in counts)
    rows = [(h, m, counts.get((h, m), 0.0)) for h in range(1, size + 1) for m in range(1, size + 1)]
    table = pd.DataFrame(rows, columns=["human_place", "model_place", "answers"])
    total = table.groupby("human_place")["answers"].transform("sum")
    table["share"] = table["answers"] / total.where(total > 0, 1.0)
    return table


def draw_rank_correlation(groups: Sequence[Group], path: Path) -> None:
    """Figure 10: model rank by human rank, and Kendall's tau per question."""
    with_pairs = [group for group in groups if len(set(group.ranks)) > 1]
    found = [both for both in map(tau_and_rho, with_pairs) if both]
    figure, (left, right) = figures.new_figure(
        "사람의 순위와 보상 모델의 순위", columns=2, width=11, height=4.6
    )
    table = rank_table(with_pairs or groups)
    _heat_map(left, table)
    taus = np.array([tau for tau, _ in found])
    edges = np.linspace(-1.1, 1.1, 12)  # centred on the values possible with five answers
    heights = np.histogram(taus, edges)[0] / max(len(taus), 1) * 100
    figures.histogram(right, edges, {"질문": heights})
    if found:
        means = np.mean(found, axis=0)
        right.axvline(means[0], color=figures.PALETTE[4], linewidth=1.8)
        words = f"평균  켄들 타우 {means[0]:.3f},  스피어만 로 {means[1]:.3f}"
    else:
        words = "순위와 점수가 모두 갈리는 질문이 없음"
    right.set_title(words, loc="left", fontsize=10, fontweight="normal")
    right.set_xlabel("질문별 켄들 타우 (1: 같은 순서, -1: 반대 순서)")
    right.set_ylabel("질문의 비중 (%)")
    figures.save_with_table(figure, table, path)


def _heat_map(axes: Axes, table: pd.DataFrame) -> None:
    size = int(table["human_place"].max())
    shares = table["share"].to_numpy().reshape(size, size) * 100
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    ticks = np.arange(0, size, max(1, size // MAX_CELLS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick + 1}위" for tick in ticks])
    axes.grid(visible=False)
    if size <= MAX_CELLS:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 65 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour)
    else:
        axes.figure.colorbar(image, ax=axes)
    axes.set_title("칸: 사람의 순위별 비중 (%)", loc="left", fontsize=10, fontweight="normal")
    axes.set_xlabel("보상 모델의 순위")
    axes.set_ylabel("사람의 순위")


def draw_margins(margins: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Figures 11 and 12: distribution of score(better) - score(worse); above 0 is correct."""
    everything = np.concatenate([*margins.values()])
    table = bin_table(margins, _margin_edges(everything))
    figure, (axes,) = figures.new_figure(title, height=4.4)
    edges = np.append(table["low"].to_numpy(), table["high"].iloc[-1])
    names = NAMES if len(margins) > 1 else dict.fromkeys(margins, "모든 쌍")
    named = {_margin_words(names[k], v): table[k].to_numpy() * 100 for k, v in margins.items()}
    figures.histogram(axes, edges, named)
    axes.axvline(0, color=figures.GREY, linewidth=1)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.2)
    axes.set_xlabel("더 좋은 답변의 점수 - 더 나쁜 답변의 점수 (0보다 크면 옳은 순서)")
    axes.set_ylabel(PAIRS_SHARE)
    figures.save_with_table(figure, table, path)


def _margin_edges(margins: np.ndarray) -> np.ndarray:
    """Bins over all but the outermost 0.4 %, with an edge at 0."""
    ends = np.quantile(margins, [0.002, 0.998]) if len(margins) else np.zeros(2)
    return even_edges(np.append(ends, 0.0), MARGIN_BINS)


def _margin_words(name: str, margins: np.ndarray) -> str:
    right = accuracy(margins)
    if right is None:
        return f"{name}: 순위가 다른 쌍이 없음"
    above, half = (margins > 0).mean(), (margins > 0.5).mean()
    return (
        f"{name}: 평균 {margins.mean():.2f}, 표준편차 {margins.std():.2f}, "
        f"0 초과 {above:.1%}, 0.5 초과 {half:.1%}"
    )


def draw_reliability(margins: np.ndarray, temperature: float, path: Path) -> None:
    """Reliability diagram: predicted probability against accuracy, and the histogram of bins."""
    found = reliability(margins, temperature)
    table = pd.DataFrame(found._asdict())
    error = ece(margins, temperature)
    figure, (left, right) = figures.new_figure(
        "보상 모델의 확률 보정", columns=2, width=10, height=4.4
    )
    left.plot(
        [0.5, 1], [0.5, 1], color=figures.GREY, linestyle="--", linewidth=1, label="완전한 보정"
    )
    left.plot(
        found.predicted, found.observed, color=figures.PALETTE[0], marker="o", label="보상 모델"
    )
    left.set_xlim(0.49, 1.01)
    left.set_xlabel("예측한 확률 (점수가 높은 답변이 더 좋을 확률)")
    left.set_ylabel("실제로 더 좋았던 비율")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    shares = found.pairs / max(found.pairs.sum(), 1) * 100
    right.bar(
        found.low,
        shares,
        found.high - found.low,
        align="edge",
        color=figures.PALETTE[0],
        edgecolor="white",
    )
    right.set_xlim(0.49, 1.01)
    right.set_xlabel("예측한 확률")
    right.set_ylabel(PAIRS_SHARE)
    words = (
        "순위가 다른 쌍이 없음" if error is None else f"ECE {error:.3f},  온도 {temperature:.3g}"
    )
    right.set_title(words, loc="left", fontsize=10, fontweight="normal")
    figures.save_with_table(figure, table, path)
