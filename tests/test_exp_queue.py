"""Two experiments from DVC's queue, without a network: run, shown, compared and drawn."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from tests.conftest import ROOT, SMALL, copy_repository
from tests.report.plots_page import CHARTS, FIGURES

QUEUED = (("seed=1", "eda.top_categories=2"), ("seed=2", "eda.top_categories=4"))
DEADLINE = 1200  # seconds for both
WIDTH = 120  # columns of a terminal
pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEADLINE + 300)]


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
    # files, not pipes: the queue's worker keeps those of the command that started it
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        done = subprocess.run(command, cwd=clone, env=env, stdout=out, stderr=errors, timeout=120)
        out.seek(0)
        errors.seek(0)
        said = out.read()
        assert done.returncode == 0, f"{' '.join(words)}: {said}{errors.read()}"
    return said


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the queue has run empty: the small pipeline, twice."""
    folder = copy_repository(
        tmp_path_factory.mktemp("queue"), ("metrics/", "plots/", "dvc.lock"), **SMALL
    )
    for changed in QUEUED:
        dvc(folder, "exp", "run", "--queue", *(word for one in changed for word in ("-S", one)))
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
    assert len(set(header)) == len(header)
    assert 100 < len(header) <= 250
    assert not [name for name in header if re.match(r"models\.(?!micro|yaml$)", name)]
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert {shown[name]["State"] for name in names} == {"Success"}
    assert sorted(shown[name]["eda.top_categories"] for name in names) == ["2", "4"]


def test_experiments_fit_a_terminal(clone: Path, names: list[str]) -> None:
    """The command of the README, without a terminal: as wide as the whole table."""
    page = (ROOT / "README.md").read_text("utf-8").splitlines()
    (command,) = (line for line in page if line.startswith("dvc exp show "))
    lines = dvc(clone, *shlex.split(command, comments=True)[1:]).splitlines()
    columns = ["Experiment", "State", "ppo.chrf", "ppo.exact", "seed", "ppo.kl_coef"]
    assert next(line for line in lines if "Experiment" in line).split() == columns
    assert sum(any(name in line for name in names) for line in lines) == len(names)
    assert max(map(len, lines)) <= WIDTH


def test_the_metrics_that_differ_are_told_once_each(clone: Path, names: list[str]) -> None:
    text = dvc(clone, "metrics", "diff", *names)
    assert max(map(len, text.splitlines())) <= WIDTH
    lines = dvc(clone, "metrics", "diff", *names, "--md").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    assert cells[0] == ["Path", "Metric", *names, "Change"]
    told = [(row[0], row[1]) for row in cells[2:]]
    assert len(set(told)) == len(told)
    assert 10 < len(told) <= 40
    seeded = ("base", "sft", "rm", "judge", "gate", "ppo", "evaluate")
    assert {path for path, _ in told} <= {f"metrics/{stage}.json" for stage in seeded}
    for row in cells[2:]:
        for value in row[2:4]:
            assert value in ("-", "True", "False") or re.fullmatch(
                r"-?\d+(\.\d+)?(e-?\d+)?", value
            ), row


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
