"""Two experiments from DVC's queue, without a network: run at once, shown, compared and drawn."""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from stages.rlhf.runs.checkpoints import log_of
from tests.conftest import ROOT, write_params
from tests.report.plots_page import CHARTS, FIGURES
from tests.runs.chaos import DVC, SMALL, STAGES, environment, kill_all, ours, repository, run

QUEUED: dict[str, dict[str, float]] = {  # the first has the params of the run that is not queued
    "grid-1": {"ppo.kl_coef": 0.02, "evaluate.max_questions": 24, "eda.top_categories": 10},
    "grid-2": {"ppo.kl_coef": 0.4, "evaluate.max_questions": 12, "eda.top_categories": 2},
}
DEADLINE = 1200  # seconds for both
WIDTH = 120  # columns of a terminal
pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEADLINE + 300)]


def called(clone: Path, *words: str) -> tuple[int, str, str]:
    """A command's status and its two outputs; it has the clone's folder and no network."""
    dead = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://[::1]:9"
    )
    env = {**environment(clone, "30"), **dead, "DVC_NO_ANALYTICS": "1"}
    command = [*DVC, *words]
    # files, not pipes: the queue's worker keeps those of the command that started it
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        done = subprocess.run(command, cwd=clone, env=env, stdout=out, stderr=errors, timeout=120)
        out.seek(0)
        errors.seek(0)
        return done.returncode, out.read(), errors.read()


def dvc(clone: Path, *words: str) -> str:
    """The output of a command that succeeds."""
    status, said, errors = called(clone, *words)
    assert status == 0, f"{' '.join(words)}: {said}{errors}"
    return said


def git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True).stdout


def references(folder: Path) -> list[str]:
    """Git's names of the experiments."""
    found = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    return [name for name in found if name.endswith(tuple(QUEUED))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which two workers have emptied the queue."""
    folder = repository(tmp_path_factory.mktemp("queue") / "grid")
    for name, params in QUEUED.items():
        changed = (word for key, value in params.items() for word in ("-S", f"{key}={value}"))
        dvc(folder, "exp", "run", "--queue", "-n", name, *changed)
    dvc(folder, "queue", "start", "-j", "2")
    until = time.monotonic() + DEADLINE
    while any(True for _ in ours(folder)) and working(folder):
        assert time.monotonic() < until, dvc(folder, "queue", "status")
        time.sleep(1)
    kill_all(folder)  # an idle worker waits for minutes
    return folder


def working(folder: Path) -> bool:
    """Whether the queue still has one to run, or to note as run.

    The worker rewrites its own files while it ends: DVC 3.67 that meets one of them empty says
    so in place of the state, and is called again.
    """
    if len(references(folder)) < len(QUEUED):
        return True
    status, said, _ = called(folder, "queue", "status")
    return status != 0 or any(state in said for state in ("Queued", "Running"))


@pytest.fixture(scope="module")
def names(clone: Path) -> list[str]:
    found = dvc(clone, "exp", "list", "--name-only").split()
    assert sorted(found) == list(QUEUED), dvc(clone, "queue", "status")
    return sorted(found)


def test_what_the_two_share_was_computed_once(clone: Path, names: list[str]) -> None:
    for stage in STAGES[: STAGES.index("ppo")]:
        (folder,) = (clone / ".work" / stage).glob("*/done")
        begun = [told for told in log_of(folder.parent) if "from" in told]
        assert all(told["from"] == 0 for told in begun)
        assert len({told["checkpointer"] for told in begun}) == len(begun), (
            f"{stage} was begun twice"
        )
    assert len(list((clone / ".work" / "ppo").glob("*/done"))) == 2


def test_each_comes_to_what_it_comes_to_alone(
    clone: Path, names: list[str], uncut: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(uncut, tmp_path / "alone"))
    for name in names:
        write_params(alone, **{**SMALL, **QUEUED[name]})
        assert run(alone, *DVC, "repro", seconds="30") == 0, alone.parent / "log.txt"
        (ref,) = (ref for ref in references(clone) if ref.endswith(f"/{name}"))
        assert git(clone, "show", f"{ref}:dvc.lock") == (alone / "dvc.lock").read_bytes(), name


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
    for name in names:
        assert {key: float(shown[name][key]) for key in QUEUED[name]} == QUEUED[name]


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
    assert 5 < len(told) <= 20
    assert {path for path, _ in told} == {"metrics/ppo.json", "metrics/evaluate.json"}
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
