"""`dvc plots` without a network: the page that carries Vega, and what a browser draws of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from PIL import Image

from tests.conftest import BROWSER, ROOT, copy_repository
from tests.report.plots_page import CHARTS, FIGURES, PAGE, VEGA_LITE, page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=15000"]
WIDTH = 1280  # pixels of a small laptop
BEYOND = """<script>addEventListener("load", () => setTimeout(() => {
  const right = [...document.images].map(image => image.getBoundingClientRect().right);
  const widest = Math.max(...[...document.querySelectorAll("html, body, body > div")]
    .map(element => element.scrollWidth));
  document.title = `${right.filter(x => x > innerWidth).length} of ${right.length} images cut off,`
    + ` widest ${widest}`;
}, 5000))</script>"""


def run(*words: str, where: Path) -> str:
    done = subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_is_the_one_that_the_packages_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.report.plots_page`"


def test_the_page_asks_for_nothing() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("{plot_divs}") == 1
    assert text.count("<script>") == text.count("</script>") == 1, "a bundle that ends its own tag"
    start, end = text.index("<script>"), text.index("</script>")
    assert end - start > 500_000, "Vega is not in it"
    assert not re.search(r"src=|<link\b|@import|{scripts}", text[:start] + text[end:])


def test_every_chart_names_columns_that_are_there() -> None:
    for chart in CHARTS:
        for plot in chart.values():
            for axis in ("x", "y"):
                for file, names in plot[axis].items():
                    with (ROOT / file).open(encoding="utf-8") as table:
                        header = table.readline().strip().split(",")
                    wanted = [names] if isinstance(names, str) else names
                    assert set(wanted) <= set(header), f"{file}: {header}"


def test_every_chart_names_its_axes() -> None:
    for chart in CHARTS:
        for name, plot in chart.items():
            assert "y_label" in plot, name
            assert "x_label" in plot or set(plot["x"].values()) == {"update"}, name


def filled(template: str, rows: list[dict[str, Any]], x: str, y: str) -> str:
    """A template of ours as DVC fills it, in part; SVG."""
    text = (PAGE.parent / f"{template}.json").read_text(encoding="utf-8")
    rev = {"field": "rev", "type": "nominal"}
    named: dict[str, Any] = {"DATA": rows, "X": x, "Y": y, "X_LABEL": x, "Y_LABEL": y}
    named |= {"TITLE": "a", "PLOT_WIDTH": 300, "PLOT_HEIGHT": 200, "TOOLTIP": rev, "COLOR": rev}
    named |= {"STROKE_DASH": {"field": "field", "type": "nominal"}, "ZOOM_AND_PAN": {"name": "a"}}
    for anchor, value in named.items():
        text = text.replace(f'"<DVC_METRIC_{anchor}>"', json.dumps(value))
    assert "<DVC" not in text
    return vl_convert.vegalite_to_svg(text, vl_version=VEGA_LITE)


def test_a_distribution_shows_its_last_bin() -> None:
    bins = {"low": 0.0, "high": 0.5, "sft": 0.2}, {"low": 0.5, "high": 1.0, "sft": 0.8}
    rows = [{**row, "rev": "HEAD", "field": "sft"} for row in bins]
    svg = filled("distribution", rows, "low", "sft")
    (line,) = re.findall(r'aria-roledescription="line mark"[^>]*? d="M([^"]*)"', svg)
    places = [tuple(map(float, point.split(","))) for point in line.split("L")]
    assert [x for x, _ in places] == [0, 150, 150, 300]
    assert places[0][1] == places[1][1] > places[2][1] == places[3][1]


def test_a_curve_of_each_model_has_a_dash_of_its_own_and_in_the_legend() -> None:
    models = ("base", "sft", "ppo")
    rows = [{"length": x, "cosine": 0.5, "model": m, "rev": "HEAD"} for m in models for x in (1, 2)]
    svg = filled("by_model", rows, "length", "cosine")
    lines = re.findall(r'aria-roledescription="line mark" [^>]*', svg)
    symbols = re.findall(r'role-legend-symbol"[^>]*><path [^>]*', svg)
    drawn, told = (
        {dash for path in paths for dash in re.findall(r'stroke="#.*dasharray="([^"]*)"', path)}
        for paths in (lines, symbols)
    )
    assert len(drawn) == len(lines) == 3
    assert told == drawn


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose last commit has other curves than the one before it."""
    clone = copy_repository(tmp_path_factory.mktemp("plots"))
    for file in {file for chart in CHARTS for plot in chart.values() for file in plot["y"]}:
        lines = (clone / file).read_text(encoding="utf-8").splitlines()
        (clone / file).write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    run("git", "commit", "-qam", "Change every curve", where=clone)
    return clone


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize(
    "words",
    [("show",), ("diff", "HEAD~1", "HEAD"), ("diff", "HEAD~1", "HEAD", "workspace")],
    ids=["show", "diff", "diff of three"],
)
def test_a_browser_draws_every_chart_offline(
    commits: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    assert BROWSER is not None
    run(sys.executable, "-m", "dvc", "plots", *words, "-o", str(tmp_path), where=commits)
    page = (tmp_path / "index.html").as_uri()
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"https?:", html)
    head, _, end = html.rpartition("</body>")  # Vega holds that word too
    (tmp_path / "measured.html").write_text(head + BEYOND + end, encoding="utf-8")
    measured = (tmp_path / "measured.html").as_uri()
    dom = run(
        BROWSER, *FLAGS, "--dump-dom", f"--window-size={WIDTH},2000", measured, where=tmp_path
    )
    revisions = max(1, len(words) - 1)
    ((cut, widest),) = re.findall(r"<title>(\d+ of \d+) images cut off, widest (\d+)", dom)
    assert cut == f"0 of {len(FIGURES) * revisions}"
    assert int(widest) <= WIDTH, "the page, or a row of figures, scrolls sideways"
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", dom)) == len(CHARTS), "not drawn"
    lines = re.findall(r"<path aria-label=\"[^\"]*\"[^>]*d=\"M[^\"]{50,}", dom)
    assert len(lines) >= len(CHARTS) * revisions, "axes without lines"
    shot = tmp_path / "shot.png"
    run(BROWSER, *FLAGS, f"--screenshot={shot}", "--window-size=1000,6000", page, where=tmp_path)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    coloured = (pixels.max(1).astype(int) - pixels.min(1)) > 60
    assert coloured.mean() > 0.002, "next to nothing on the page has a colour"
