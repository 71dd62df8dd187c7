"""A uniform style for all figures; importing this module sets it.

A figure is created by `new_figure`, filled by the functions below, and written by `save`, whose
bytes depend only on the data: matplotlib's defaults (no user matplotlibrc), a font file from a
package, and no date or version in the PNG.
"""

import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from stages.rlhf.records import write_csv

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 300_000
DPI = 110
MIN_DPI = 50
# Okabe and Ito's colours: dark enough for print, distinguishable under colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
GREY = "#555555"

Series = Mapping[str, Sequence[float] | np.ndarray]


def _register_font() -> str:
    """Register NanumGothic from koreanize-matplotlib's folder; returns the family name.

    The package itself is not imported: that needs distutils, which Python 3.12 removed.
    """
    spec = find_spec("koreanize_matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("koreanize-matplotlib, which provides the Korean font, is not installed")
    fonts = Path(spec.submodule_search_locations[0]) / "fonts"
    for name in ("NanumGothic.ttf", "NanumGothicBold.ttf"):
        font_manager.fontManager.addfont(fonts / name)
    return "NanumGothic"


matplotlib.rcdefaults()
matplotlib.rcParams.update(
    {
        "font.family": _register_font(),
        "font.size": 10,
        "axes.unicode_minus": False,  # NanumGothic has no U+2212
        "text.parse_math": False,  # a dollar sign in an answer is literal
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "semibold",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "hatch.linewidth": 0.5,
        "savefig.dpi": DPI,
    }
)

_FONT = font_manager.get_font(font_manager.findfont(matplotlib.rcParams["font.family"][0]))
_CHARACTERS = frozenset(_FONT.get_charmap())


def new_figure(
    title: str, columns: int = 1, width: float = 7.0, height: float = 4.0
) -> tuple[Figure, list[Axes]]:
    """A titled figure with `columns` panels side by side; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="semibold")
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


class TooLargeError(ValueError):
    """A figure that exceeds MAX_BYTES even at MIN_DPI."""


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend only on the figure, at lower dpi if it exceeds MAX_BYTES.

    Raises TooLargeError if it exceeds MAX_BYTES even at MIN_DPI.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dpi, size = float(DPI), MAX_BYTES + 1
    while size > MAX_BYTES and dpi >= MIN_DPI:
        figure.savefig(path, format="png", metadata={"Software": None}, dpi=dpi)
        size = path.stat().st_size
        dpi *= 0.85
    if size > MAX_BYTES:
        raise TooLargeError(f"{path}: {size} bytes; expected at most {MAX_BYTES}")


def save_with_table(figure: Figure, table: "pd.DataFrame", path: Path) -> None:
    """Write `path`.png and, next to it, the data behind it as `path`.csv."""
    save(figure, path.with_suffix(".png"))
    write_csv(path.with_suffix(".csv"), table)


def bars(axes: Axes, labels: Sequence[str], series: Series, form: str | None = "{:.1f}") -> None:
    """Grouped bars: one group per label, one colour and hatch per series; `form` formats values."""
    positions = np.arange(len(labels))
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        left = positions + (i - (len(series) - 1) / 2) * width
        patches = axes.bar(left, values, width, label=name, **_fill(i))
        if form is not None:
            axes.bar_label(patches, [form.format(v) for v in values], fontsize=7, padding=1)
    axes.set_xticks(positions, labels)
    axes.margins(y=0.12)
    _legend(axes, len(series))


def horizontal_bars(axes: Axes, labels: Sequence[str], series: Series) -> None:
    """Grouped bars for long labels, the first label on top."""
    positions = np.arange(len(labels))
    height = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        top = positions + (i - (len(series) - 1) / 2) * height
        axes.barh(top, values, height, label=name, **_fill(i))
    axes.set_yticks(positions, [drawable(shorten(label, 24)) for label in labels])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    _legend(axes, len(series))


def histogram(axes: Axes, edges: Sequence[float] | np.ndarray, series: Series) -> None:
    """Outlines of several distributions over the same bin edges; heights are not normalised."""
    for i, (name, heights) in enumerate(series.items()):
        colour = PALETTE[i % len(PALETTE)]
        style = ("-", "--", "-.", ":")[i % 4]
        axes.stairs(heights, edges, label=name, color=colour, linestyle=style, linewidth=1.6)
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.15)
    axes.set_ylim(bottom=0)
    _legend(axes, len(series))


def mark(axes: Axes, values: Mapping[str, float]) -> None:
    """Named vertical lines, such as percentiles, with labels at decreasing heights."""
    top = axes.get_ylim()[1]
    middle = sum(axes.get_xlim()) / 2
    for i, (name, value) in enumerate(values.items()):
        axes.axvline(value, color=GREY, linestyle=":", linewidth=1)
        side = "left" if value < middle else "right"
        words = f"{name} {value:,.0f}"
        axes.annotate(
            words,
            (value, top * (0.97 - 0.08 * i)),
            (4 if side == "left" else -4, 0),
            textcoords="offset points",
            ha=side,
            fontsize=8,
            bbox={"boxstyle": "square,pad=0.1", "color": "white"},
        )


def boxes(axes: Axes, summaries: Mapping[str, Mapping[str, float]]) -> None:
    """Box plots from summaries: boxes P25-P75, the median, whiskers P5-P95, a diamond at the mean.

    A summary has the keys p5, p25, p50, p75, p95 and mean.
    """
    stats = [
        {
            "label": name,
            "whislo": values["p5"],
            "q1": values["p25"],
            "med": values["p50"],
            "q3": values["p75"],
            "whishi": values["p95"],
            "mean": values["mean"],
        }
        for name, values in summaries.items()
    ]
    parts = axes.bxp(
        stats,
        showmeans=True,
        showfliers=False,
        patch_artist=True,
        widths=0.5,
        medianprops={"color": "black"},
        meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black"},
    )
    for i, box in enumerate(parts["boxes"]):
        box.set(**_fill(i))


def cloud(axes: Axes, x: np.ndarray, y: np.ndarray, i: int) -> None:
    """A scatter plot in the i-th colour and marker; one per panel, since two would overlap."""
    colour = PALETTE[i % len(PALETTE)]
    axes.scatter(x, y, s=12, alpha=0.4, linewidths=0, color=colour, marker="osD^"[i % 4])


def means(axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> None:
    """White diamonds with black edges: means of bins, over a scatter plot."""
    axes.plot(
        x, y, "D", markersize=5, markerfacecolor="white", markeredgecolor="black", label="구간 평균"
    )


def share_axes(panels: Sequence[Axes]) -> None:
    """Give adjacent panels the same limits."""
    for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        limits = [getattr(axes, get)() for axes in panels]
        for axes in panels:
            getattr(axes, put)(min(low for low, _ in limits), max(high for _, high in limits))


def paths(axes: Axes, x: np.ndarray, series: Series, ends: tuple[str, str]) -> None:
    """Points connected in order, which may double back; `ends` label the first and last."""
    for i, (name, y) in enumerate(series.items()):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, linestyle=("-", "--")[i % 2])
        axes.plot(x, y, "osD^"[i % 4], color=colour, markersize=5, label=name)
        for words, at in zip(ends, (0, -1), strict=True):
            point = float(x[at]), float(y[at])
            axes.annotate(words, point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.12)
    _legend(axes, len(series))


def table(axes: Axes, header: Sequence[str], rows: Sequence[Sequence[str]], wrap: int) -> None:
    """A table of text wrapped at `wrap` characters (Hangul width); row heights fit the text."""
    axes.axis("off")
    cells = [[_wrapped(cell, wrap) for cell in row] for row in [header, *rows]]
    lines = [max(cell.count("\n") + 1 for cell in row) + 0.6 for row in cells]
    grid = axes.table(cellText=cells, cellLoc="left", bbox=Bbox.unit())
    grid.auto_set_font_size(False)
    grid.set_fontsize(7)
    for (row, _), cell in grid.get_celld().items():
        cell.set_height(lines[row] / sum(lines))
        cell.set_edgecolor("#BBBBBB")
        cell.PAD = 0.03
        cell.get_text().set_linespacing(1.4)
        if row == 0:
            cell.set_facecolor("#E8E8E8")
            cell.get_text().set_fontweight("semibold")


def table_height(header: Sequence[str], rows: Sequence[Sequence[str]], wrap: int) -> float:
    """Height in inches that `table` needs for these rows."""
    cells = [[_wrapped(cell, wrap) for cell in row] for row in [header, *rows]]
    return 0.9 + 0.15 * sum(max(cell.count("\n") + 1 for cell in row) + 0.6 for row in cells)


def shorten(text: str, width: int) -> str:
    """At most `width` characters, ending in an ellipsis if truncated."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def drawable(text: str) -> str:
    """Replace characters missing from the font, such as emoji, by a black square."""
    return "".join(c if ord(c) in _CHARACTERS or c.isspace() else "■" for c in text)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(drawable(text), width)) or " "


def _legend(axes: Axes, names: int) -> None:
    # Above the panel, where it hides no data; not needed for a single series.
    if names > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=names, borderaxespad=0.2)


def _fill(i: int) -> dict[str, Any]:
    return {
        "facecolor": PALETTE[i % len(PALETTE)],
        "hatch": HATCHES[i % len(HATCHES)],
        "edgecolor": "white",
    }
