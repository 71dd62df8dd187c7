"""`dvc plots` without a network: the page that carries Vega, and what a browser draws of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.closure import ROOT
from tests.plots_page import PAGE, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
CHARTS = [p for p in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"] if isinstance(p, dict)]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=15000"]


def run(*words: str, where: Path) -> str:
    done = subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_is_the_one_that_the_packages_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.plots_page`"


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


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose last commit has other curves than the one before it."""
    clone = tmp_path_factory.mktemp("plots") / "clone"
    run("git", "clone", "-q", str(ROOT), str(clone), where=ROOT)
    for file in {file for chart in CHARTS for plot in chart.values() for file in plot["y"]}:
        lines = (clone / file).read_text(encoding="utf-8").splitlines()
        (clone / file).write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    run("git", *author, "commit", "-qam", "Change every curve", where=clone)
    return clone


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("words", [("show",), ("diff", "HEAD~1", "HEAD")], ids=["show", "diff"])
def test_a_browser_draws_every_chart_offline(
    commits: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    assert BROWSER is not None
    run(sys.executable, "-m", "dvc", "plots", *words, "-o", str(tmp_path), where=commits)
    page = (tmp_path / "index.html").as_uri()
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"https?:", html)
    dom = run(BROWSER, *FLAGS, "--dump-dom", page, where=tmp_path)
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", dom)) == len(CHARTS), "not drawn"
    lines = re.findall(r"<path aria-label=\"[^\"]*\"[^>]*d=\"M[^\"]{50,}", dom)
    commits_drawn = 2 if words[0] == "diff" else 1
    assert len(lines) >= len(CHARTS) * commits_drawn, "axes without lines"
    shot = tmp_path / "shot.png"
    run(BROWSER, *FLAGS, f"--screenshot={shot}", "--window-size=1000,6000", page, where=tmp_path)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    coloured = (pixels.max(1).astype(int) - pixels.min(1)) > 60
    assert coloured.mean() > 0.002, "next to nothing on the page has a colour"
