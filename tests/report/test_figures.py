"""One figure style: Korean drawn, bytes that depend on the data alone."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from stages.rlhf.report import figures
from tests.conftest import naming


def draw(path: Path) -> bytes:
    figure, (left, right) = figures.new_figure("한국어 제목", columns=2)
    figures.histogram(left, [0, 1, 2], {"기준": [0.5, 0.5], "강화": [0.2, 0.8]})
    figures.bars(right, ["가", "나"], {"값": [-1.0, 2.0]})
    figures.save(figure, path)
    return path.read_bytes()


def test_same_figure_same_bytes(tmp_path: Path) -> None:
    first = draw(tmp_path / "a" / "one.png")
    assert first == draw(tmp_path / "b" / "two.png")
    for word in (b"Software", b"date", b"tIME"):
        assert word not in first


def test_font_holds_hangul_and_is_the_packages() -> None:
    path = font_manager.findfont(figures.matplotlib.rcParams["font.family"][0])
    assert "koreanize_matplotlib" in path
    characters = font_manager.get_font(path).get_charmap()
    assert {ord(c) for c in "가힣뷁·◇…°"} <= set(characters)


def test_no_glyph_missing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    draw(tmp_path / "a.png")
    assert not [str(w.message) for w in recwarn if "missing from font" in str(w.message)]


def test_what_the_font_lacks_is_a_square(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    figure, (left, right) = figures.new_figure("표", columns=2)
    figures.table(left, ["답"], [["흐\ufffd림\U0001f600"], ["둘째\n줄"]], 10)
    figures.horizontal_bars(right, ["과학\U0001f52c"], {"값": [1.0]})
    figures.save(figure, tmp_path / "a.png")
    assert figures.drawable("흐\ufffd림\U0001f600 ab\n") == "흐■림■ ab\n"
    assert not [str(w.message) for w in recwarn if "missing from font" in str(w.message)]


def test_panels_that_share_axes() -> None:
    _, panels = figures.new_figure("둘", columns=2)
    for i, axes in enumerate(panels):
        figures.cloud(axes, np.arange(3.0) + 10 * i, np.arange(3.0) * (i + 1), i)
    figures.share_axes(panels)
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].get_xlim()[0] < 0 < 12 < panels[0].get_xlim()[1]


def test_paths_keep_their_order_and_name_their_ends() -> None:
    _, (axes,) = figures.new_figure("길")
    x = np.array([0.0, 0.8, 0.5])
    figures.paths(axes, x, {"하나": x * 2, "둘": x * 3}, ("0", "60"))
    assert all(line.get_xdata().tolist() == x.tolist() for line in axes.lines)
    words = [(text.get_text(), *text.xy) for text in axes.texts]
    assert words == [("0", 0, 0), ("60", 0.5, 1), ("0", 0, 0), ("60", 0.5, 1.5)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["하나", "둘"]


def test_too_large_a_figure_is_refused(tmp_path: Path) -> None:
    figure = Figure(figsize=(12, 12))
    noise = np.random.default_rng(0).random((900, 900))
    figure.add_subplot().imshow(noise, interpolation="nearest")
    with pytest.raises(ValueError, match=naming(tmp_path / "big.png", figures.MAX_BYTES)):
        figures.save(figure, tmp_path / "big.png")


def test_a_figure_a_little_too_large_is_drawn_coarser(tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 6))
    noise = np.random.default_rng(0).random((900, 900))
    figure.add_subplot().imshow(noise, interpolation="nearest")
    figure.savefig(tmp_path / "fine.png", dpi=figures.DPI)
    figures.save(figure, tmp_path / "coarse.png")
    fine, coarse = ((tmp_path / f"{n}.png").stat().st_size for n in ("fine", "coarse"))
    assert coarse <= figures.MAX_BYTES < fine, f"{coarse} and {fine} bytes"


def test_table_wraps_and_keeps_dollar_signs(tmp_path: Path) -> None:
    rows = [["질문 " * 10, "$100$ 와 $x"], ["둘", ""]]
    height = figures.table_height(["하나", "둘"], rows, 10)
    assert height > figures.table_height(["하나", "둘"], [["짧다", "짧다"], ["둘", ""]], 10)
    figure, (axes,) = figures.new_figure("표", height=height)
    figures.table(axes, ["하나", "둘"], rows, 10)
    texts = [cell.get_text() for cell in axes.tables[0].get_celld().values()]
    assert "$100$ 와 $x" in [text.get_text() for text in texts]
    assert not any(text.get_parse_math() for text in texts)
    assert max(len(line) for t in texts for line in t.get_text().split("\n")) <= 12
    figures.save(figure, tmp_path / "table.png")


def test_shorten() -> None:
    assert figures.shorten("가나다라", 4) == "가나다라"
    assert figures.shorten("가나다라마", 4) == "가나다…"
