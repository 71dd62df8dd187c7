"""Figures 1-7 of the original study, of the training rows, each with the table behind it.

Shares and distributions are those of the training splits; 1_share.csv counts the others too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd

from stages.rlhf.records import PromptRow, RmRow, write_csv
from stages.rlhf.report import figures, tables

NAMES = {"sft": "SFT", "rm": "RM", "ppo": "PPO"}
FIELDS = {"category": "분야", "question_type": "질문 유형"}
Train = dict[str, list[PromptRow]]


def draw_share(items: pd.DataFrame, out: Path) -> None:
    """Figure 1: items per part."""
    figure, (axes,) = figures.new_figure("단계별 학습 항목의 비중")
    labels = [f"{NAMES[p]}\n{n:,}개" for p, n in zip(items["part"], items["train"], strict=True)]
    figures.bars(axes, labels, {"비중": items["train_share"].to_numpy() * 100}, "{:.1f} %")
    axes.set_ylabel("학습 항목의 비중 (%)")
    figures.save(figure, out / "1_share.png")
    write_csv(out / "1_share.csv", items)


def draw_lengths(train: Train, out: Path) -> dict[str, dict[str, Any]]:
    """Figures 2 and 3: question and answer length by part; their summaries."""
    plans: list[tuple[str, str, Callable[..., Any]]] = [
        ("2_question_length", "단계별 질문 길이", tables.question_lengths),
        ("3_answer_length", "단계별 답변 길이", tables.answer_lengths),
    ]
    found = {}
    for name, title, measure in plans:
        summaries = {part: tables.summary(measure(rows)) for part, rows in train.items()}
        present = {part: values for part, values in summaries.items() if values["count"]}
        figure, (axes,) = figures.new_figure(title)
        figures.boxes(axes, {NAMES[part]: values for part, values in present.items()})
        axes.set_ylabel("글자 수 (상자 P25-P75, 수염 P5-P95, ◇ 평균)")
        figures.save(figure, out / f"{name}.png")
        table = pd.DataFrame.from_dict(present, orient="index").rename_axis("part").reset_index()
        write_csv(out / f"{name}.csv", table)
        found[name[2:]] = {
            part: values
            if values["count"]
            else {"count": 0, "mean": None, "mean_reason": "no texts"}
            for part, values in summaries.items()
        }
    return found


def draw_sft(rows: list[PromptRow], out: Path) -> None:
    """Figure 4: SFT question and answer length distributions."""
    figure, panels = figures.new_figure("SFT 질문과 답변의 길이 분포", columns=2, width=9)
    sides = {
        "question": ("질문", tables.question_lengths(rows)),
        "answer": ("답변", tables.answer_lengths(rows)),
    }
    frames = []
    for axes, (side, (title, lengths)) in zip(panels, sides.items(), strict=True):
        table = tables.bin_table({"share": lengths}, tables.length_edges(lengths))
        edges = [*table["low"], table["high"].iloc[-1]]
        figures.histogram(axes, edges, {title: table["share"].to_numpy() * 100})
        marks = tables.summary(lengths)
        figures.mark(axes, {k.upper(): marks[k] for k in ("p50", "p95", "p99") if k in marks})
        axes.set_title(title)
        axes.set_xlabel("글자 수")
        frames.append(table.assign(side=side))
    panels[0].set_ylabel("비중 (%)")
    figures.save(figure, out / "4_sft_lengths.png")
    write_csv(out / "4_sft_lengths.csv", pd.concat(frames))


def draw_ranks(rows: list[RmRow], out: Path) -> pd.DataFrame:
    """Figures 5 and 6: answers per rank, and their mean length."""
    table = tables.rank_table(rows)
    plans = [
        ("5_rank", "RM 순위의 분포", "answers", "답변 수", "{:,.0f}"),
        ("6_rank_length", "순위별 평균 답변 길이", "mean_length", "글자 수", "{:.1f}"),
    ]
    for name, title, column, label, form in plans:
        figure, (axes,) = figures.new_figure(title)
        ranks = [f"{rank}위" for rank in table["rank"]]
        figures.bars(axes, ranks, {label: table[column].to_numpy()}, form)
        axes.set_ylabel(label)
        figures.save(figure, out / f"{name}.png")
    write_csv(out / "5_rank.csv", table[["rank", "answers", "share"]])
    lengths = ["rank", "answers", "mean_length", "median_length", "p95_length"]
    write_csv(out / "6_rank_length.csv", table[lengths])
    return table


def draw_labels(train: Train, field: str, top: int, out: Path) -> dict[str, Any]:
    """Figure 7: shares of categories, or of question types, of the parts side by side."""
    table = tables.label_table(train, field, top)
    figure, (axes,) = figures.new_figure(
        f"{FIELDS[field]}별 질문 비중 (상위 {top})", height=1.5 + 0.4 * len(table)
    )
    series = {NAMES[part]: table[part].to_numpy() * 100 for part in train}
    figures.horizontal_bars(axes, list(table[field]), series)
    axes.set_xlabel("질문의 비중 (%)")
    figures.save(figure, out / f"7_{field}.png")
    write_csv(out / f"7_{field}.csv", table)
    return tables.shares_of(table, field, list(train))


def rank_metrics(rows: list[RmRow], table: pd.DataFrame) -> dict[str, Any]:
    """Balance and mean length by rank, the longest rank, and how many groups hold a tie."""
    if table.empty:
        reason = "no training row of rm"
        keys = ("balance", "mean_length", "longest", "tied_groups")
        return {k: v for key in keys for k, v in ((key, None), (f"{key}_reason", reason))}
    return {
        "balance": dict(zip(table["rank"], table["share"], strict=True)),
        "mean_length": dict(zip(table["rank"], table["mean_length"], strict=True)),
        "longest": table["rank"].iloc[int(table["mean_length"].argmax())],
        "tied_groups": tables.tied_share(rows),
    }


def draw(rows: Path, plots: Path, top: int) -> dict[str, Any]:
    """Every figure of the training rows; the numbers behind them."""
    parts = tables.read_parts(rows)
    train = {part: splits["train"] for part, splits in parts.items()}
    groups = cast(list[RmRow], train["rm"])
    items = tables.item_table(parts)
    draw_share(items, plots)
    lengths = draw_lengths(train, plots)
    draw_sft(train["sft"], plots)
    ranks = draw_ranks(groups, plots)
    shares = {field: draw_labels(train, field, top, plots) for field in FIELDS}
    return {
        "split": "train",
        "items": {row.pop("part"): row for row in items.to_dict("records")},
        **lengths,
        "rank": rank_metrics(groups, ranks),
        **shares,
    }
