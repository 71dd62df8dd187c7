"""Two experiments from DVC's queue, without a network: run, shown, compared and drawn."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, copy_repository
from tests.report.plots_page import CHARTS, FIGURES

GRID = "eda.top_categories=2,4"  # the first stages alone are quick enough to be run for this
DEADLINE = 240  # seconds
pytestmark = pytest.mark.slow


def dvc(clone: Path, *words: str) -> str:
    """A command's output; it has the clone's folder, this interpreter and no network."""
    dead = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://[::1]:9"
    )
    here = str(Path(sys.executable).parent)
    env = {**os.environ, **dead, "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}
    env["PATH"] = os.pathsep.join([here, env["PATH"]])
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the queue has run empty."""
    folder = copy_repository(tmp_path_factory.mktemp("queue"))
    settings = [word for key, value in SMALL.items() for word in ("-S", f"{key}={value}")]
    dvc(folder, "exp", "run", "--queue", *settings, "-S", GRID, "eda")
    dvc(folder, "queue", "start")
    until = time.monotonic() + DEADLINE
    while any(
        state in (status := dvc(folder, "queue", "status")) for state in ("Queued", "Running")
    ):
        assert time.monotonic() < until, status
        time.sleep(1)
    return folder


@pytest.fixture(scope="module")
def names(clone: Path) -> list[str]:
    found = dvc(clone, "exp", "list", "--name-only").split()
    assert len(set(found)) == len(found) == 2, dvc(clone, "queue", "status")
    return found


def finite(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_metric_is_finite_and_every_column_has_a_name_of_its_own(
    clone: Path, names: list[str]
) -> None:
    finite(dvc(clone, "exp", "show", "--json"))
    header, *rows = csv.reader(io.StringIO(dvc(clone, "exp", "show", "--csv")))
    assert len(set(header)) == len(header) > 1000
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert {shown[name]["State"] for name in names} == {"Success"}
    assert sorted(shown[name]["eda.top_categories"] for name in names) == ["2", "4"]


def test_the_metrics_that_differ_are_told_once_each(clone: Path, names: list[str]) -> None:
    lines = dvc(clone, "metrics", "diff", *names, "--md").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    assert cells[0] == ["Path", "Metric", *names, "Change"]
    told = [(row[0], row[1]) for row in cells[2:]]
    assert len(set(told)) == len(told) > 0
    # a second category more, and so less in what is left over; no other stage's metric moves
    assert {path for path, _ in told if "runtime" not in path} == {"metrics/eda.json"}
    for row in cells[2:]:
        for value in row[2:4]:
            assert value == "-" or re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value), row


def test_the_page_holds_the_figures_of_both(clone: Path, names: list[str], tmp_path: Path) -> None:
    dvc(clone, "plots", "diff", *names, "-o", str(tmp_path))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"https?:", html)
    assert html.count("vegaEmbed('#") == len(CHARTS)
    for name in names:
        sources = re.findall(rf'src="(static/{name}_[^"]+\.png)"', html)
        assert len(set(sources)) == len(FIGURES)
        assert all((tmp_path / source).stat().st_size > 0 for source in sources)
    seven = [(tmp_path / f"static/{name}_plots_eda_7_category.png").read_bytes() for name in names]
    assert seven[0] != seven[1], "one experiment's figure stands for both"
