"""Figures 8 and 13-17 of the original study and PPO's validation curves, each with its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.rlhf.report import figures
from stages.rlhf.report.comparison import Measured, spread
from stages.rlhf.report.structure import Part
from stages.rlhf.report.tables import bin_table, even_edges

NAMES = {"base": "기반 모델", "sft": "SFT", "ppo": "PPO"}
SHOWN_IN_FIGURE = 12  # rows of the sample table in the figure, or fewer where they are too large
BINS = 30  # approximate number
CELL_CHARACTERS = 150  # per answer in the figure
TABLE_CHARACTERS = 15_000  # per column of the CSV, to keep it small

PANELS = {
    "cosine": "코사인 유사도",
    "euclidean_distance": "유클리드 거리 (작을수록 가까움)",
    "pearson": "피어슨 상관",
}


def draw_all(
    models: Mapping[str, Measured], samples: Sequence[Mapping[str, Any]], shown: int, out: Path
) -> None:
    """All figures of the comparison; `shown` rows in the sample table's CSV and Markdown."""
    two = {name: models[name] for name in ("base", "sft")}
    draw_distribution(two, "SFT 전후: 참조 답변과의 유사도", out / "8_base_sft")
    draw_distribution(models, "참조 답변과의 유사도 분포", out / "13_similarity")
    draw_lengths(models, out / "14_length_similarity")
    draw_side_by_side(models, out / "15_distributions")
    draw_samples(samples, list(models), shown, out / "16_samples")


def draw_curves(validation: pd.DataFrame, path: Path) -> None:
    """PPO on validation against sqrt(KL): chrF, reward model and judge.

    As in Gao et al. 2023, arXiv 2210.10760: if the proxy rises while the others fall, it is hacked.
    """
    figure, panels = figures.new_figure("PPO: 검증 질문에서, √KL에 따라", columns=2, width=10)
    series = (
        ({"chrf": "chrF"}, "chrF"),
        ({"score": "보상 모델", "judge": "판정 모델"}, "점수 (sd)"),
    )
    for axes, (names, title) in zip(panels, series, strict=True):
        figures.paths(
            axes,
            validation["sqrt_kl"].to_numpy(),
            {label: validation[key].to_numpy() for key, label in names.items()},
            (str(validation["update"].iloc[0]), str(validation["update"].iloc[-1])),
        )
        axes.set_xlabel("√KL(정책 || SFT), 답변당 nats의 제곱근; 숫자는 업데이트")
        axes.set_ylabel(title)
    figures.save(figure, path.with_suffix(".png"))


def draw_structure(parts: Sequence[Part], numbers: Mapping[str, Any], path: Path) -> None:
    """Figure 17: the backbone's modules, and the share that the policy's adapter trains."""
    header = ["모듈", "모양", "개수", "파라미터"]
    rows = [[p.name, p.shape, f"{p.times:,}", f"{p.parameters:,}"] for p in parts]
    rows += [
        ["합계", "", "", f"{numbers['parameters']:,}"],
        [
            f"LoRA r={numbers['lora_rank']}, alpha={numbers['lora_alpha']}",
            f"{100 * numbers['trained_share']:.2f} %",
            "",
            f"{numbers['trained_parameters']:,}",
        ],
    ]
    wrap = 40
    height = figures.table_height(header, rows, wrap)
    figure, (axes,) = figures.new_figure("모델의 구조", width=9, height=height)
    figures.table(axes, header, rows, wrap)
    figures.save_with_table(figure, pd.DataFrame(rows, columns=header), path)


def draw_distribution(models: Mapping[str, Measured], title: str, path: Path) -> None:
    """Histogram of cosine per model."""
    figure, (axes,) = figures.new_figure(title)
    table = _bins(models, "cosine")
    _draw_bins(axes, table, models)
    axes.set_xlabel(PANELS["cosine"])
    axes.set_ylabel("답변의 비중 (%)")
    figures.save_with_table(figure, table, path)


def draw_side_by_side(models: Mapping[str, Measured], path: Path) -> None:
    """Figure 15: cosine, Euclidean distance and Pearson correlation, one panel each."""
    figure, panels = figures.new_figure("모델별 유사도 분포", columns=3, width=12)
    tables = []
    for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
        table = _bins(models, metric)
        _draw_bins(axes, table, models)
        axes.set_xlabel(title)
        tables.append(table.assign(metric=metric))
    panels[0].set_ylabel("답변의 비중 (%)")
    figures.save_with_table(figure, pd.concat(tables), path)


def draw_lengths(models: Mapping[str, Measured], path: Path) -> None:
    """Figure 14: length against cosine, one panel per model; the table by deciles of length."""
    figure, panels = figures.new_figure("답변 길이와 유사도", columns=len(models), width=12)
    tables = []
    for i, (axes, (name, measured)) in enumerate(zip(panels, models.items(), strict=True)):
        frame = measured.values
        tenth = (frame["length"].rank(method="first", pct=True) * 10).apply(np.ceil).astype(int)
        grouped = frame.groupby(tenth.rename("tenth"))
        table = grouped.agg(
            answers=("length", "size"), length=("length", "mean"), cosine=("cosine", "mean")
        )
        tables.append(table.reset_index().assign(model=name))
        figures.cloud(axes, frame["length"].to_numpy(), frame["cosine"].to_numpy(), i)
        figures.means(axes, table["length"].to_numpy(), table["cosine"].to_numpy())
        axes.set_title(NAMES[name])
        axes.set_xlabel("답변의 글자 수")
    panels[0].set_ylabel(f"{PANELS['cosine']} (◇ 길이로 나눈 열 구간의 평균)")
    figures.share_axes(panels)
    figures.save_with_table(figure, pd.concat(tables), path)


def draw_samples(
    samples: Sequence[Mapping[str, Any]], models: Sequence[str], shown: int, path: Path
) -> None:
    """Figure 16: evenly spaced test questions with the reference and each model's response."""
    header = ["질문", "참조 답변", *(NAMES[name] for name in models)]
    chosen = [
        [sample["question"], sample["reference"], *(sample[name]["answer"] for name in models)]
        for sample in spread(samples, shown)
    ]
    limit = max(40, min(500, TABLE_CHARACTERS // shown))
    rows = [[figures.shorten(" ".join(cell.split()), limit) for cell in row] for row in chosen]
    table = pd.DataFrame(rows, columns=header)
    count = SHOWN_IN_FIGURE
    while True:
        try:
            figures.save_with_table(_sample_figure(header, spread(rows, count)), table, path)
            break
        except figures.TooLargeError:
            if count == 1:
                raise
            count = count * 3 // 4
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines
    )
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8", newline="\n")


def _sample_figure(header: list[str], rows: Sequence[list[str]]) -> Figure:
    """The rows as a table, long answers shortened."""
    shortened = [[figures.shorten(cell, CELL_CHARACTERS) for cell in row] for row in rows]
    wrap = 20
    height = figures.table_height(header, shortened, wrap)
    figure, (axes,) = figures.new_figure("질문과 답변의 예", width=12, height=height)
    figures.table(axes, header, shortened, wrap)
    return figure


def _bins(models: Mapping[str, Measured], metric: str) -> pd.DataFrame:
    series = {name: measured.values[metric].to_numpy() for name, measured in models.items()}
    return bin_table(series, even_edges(np.concatenate([*series.values()]), BINS))


def _draw_bins(axes: Any, table: pd.DataFrame, models: Mapping[str, Measured]) -> None:
    edges = np.append(table["low"].to_numpy(), table["high"].iloc[-1])
    figures.histogram(axes, edges, {NAMES[name]: table[name].to_numpy() * 100 for name in models})
