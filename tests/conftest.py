"""Helpers that several tests share."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.rlhf.runs.closure import code_hashes

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads leave the cores to others
ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
SMALL = {  # params with which the whole pipeline takes a minute
    "model": "micro",
    "threads": 1,
    "sample.demonstrations": 160,
    "sample.groups": 80,
    "sample.judge_groups": 20,
    "sample.prompts": 120,
    "sample.documents": 2000,
    "evaluate.max_questions": 24,
    "models.micro.ppo.corpus_check": 0.5,
    "ppo.value_warmup": 1,
    "ppo.evaluate_every": 1,
    "ppo.require_gate": False,
    "rm.resamples": 50,
    "judge.resamples": 50,
    "gate.resamples": 50,
    "evaluate.resamples": 50,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a run of the pipeline come first: `pytest -n 2` hands files out in order."""
    shared = {
        item.path
        for item in items
        if {"uncut", "micro_chain"} & {*getattr(item, "fixturenames", ())}
    }
    items.sort(key=lambda item: item.path not in shared)


class Killed(BaseException):
    """Stands for a signal that no code can catch: nothing may be written after it."""


def full_disk(*given: Any, **named: Any) -> None:
    """Stands for whatever writes a file, when there is no room for one."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _work_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test goes on with the checkpoints of another, or of the repository."""
    monkeypatch.setenv("KOQA_WORK", str(tmp_path / ".work"))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A stage sets the number of threads of its process, on which the last bits depend."""
    torch = sys.modules.get("torch")  # imported by those tests alone that need it
    before = torch.get_num_threads() if torch else None
    yield
    if torch:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def micro_chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A folder in which every stage has run once with SMALL, and the params that each has read.

    Read only: the tests of a session share it. What a test changes it copies first.
    """
    from tests.chain import run_chain  # here, so that no other test waits for ten stages' imports

    folder = tmp_path_factory.mktemp("chain")
    return folder, run_chain(folder)


@pytest.fixture(scope="session")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `dvc repro` has run the small pipeline from nothing. Read only."""
    from tests.runs import chaos

    return chaos.uncut(tmp_path_factory.mktemp("uncut") / "whole")


def naming(*facts: object) -> str:
    """A regex for `match=`: an error names all of these, in any order and in any words.

    Numbers stand alone: 1 is not found in 10 or 0.1. All else is found anywhere.
    """
    alone = r"(?<![\w./-])%s(?![\w/-]|\.\d)"  # not of a path like pytest-1/a1
    found = (
        alone % re.escape(str(f)) if isinstance(f, int | float) else re.escape(str(f))
        for f in facts
    )
    return "(?s)^" + "".join(f"(?=.*{fact})" for fact in found)


def write_params(folder: Path, **overrides: Any) -> Path:
    """params.yaml and stages/models.yaml with changes, `**{"ppo.gamma": 1}`; the first's path."""
    yaml = YAML()
    files = {name: yaml.load(ROOT / name) for name in ("stages/models.yaml", "params.yaml")}
    for address, value in overrides.items():
        *sections, key = address.split(".")
        section = files["stages/models.yaml" if address.startswith("models.") else "params.yaml"]
        for name in sections:
            section = section[name]
        section[key] = str(value) if isinstance(value, Path) else value
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("w", encoding="utf-8") as out:
            yaml.dump(content, out)
    return folder / "params.yaml"


def write_fingerprint(folder: Path, stage: str) -> Path:
    """data/check/<stage>.json as stage check writes it, and an empty model.json; its path."""
    code = Path("data") / "check" / f"{stage}.json"
    (folder / code).parent.mkdir(parents=True, exist_ok=True)
    if not (folder / code.parent / "model.json").exists():
        (folder / code.parent / "model.json").write_text("{}", encoding="utf-8")
    (folder / code).write_text(json.dumps(code_hashes(stage)), encoding="utf-8")
    return code


@cache
def staged(path: str) -> str:
    """A file of the repository as git would commit it now."""
    shown = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, check=True, capture_output=True)
    return shown.stdout.decode()


def copy_repository(folder: Path, without: tuple[str, ...] = (), **params: Any) -> Path:
    """A git repository of one commit: this working tree, uncommitted edits and new files too.

    `without`: beginnings of paths that are left out; `params` are written into its params.yaml.
    """

    def git(*words: str, where: Path = folder) -> str:
        done = subprocess.run(["git", *words], cwd=where, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode()

    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", where=ROOT)
    for name in listed.strip("\0").split("\0"):
        if (ROOT / name).is_file() and not name.startswith(without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    if params:
        write_params(folder, **params)
    git("init", "-q", "-b", "main")
    git("config", "user.name", "a")
    git("config", "user.email", "a@example.org")
    git("add", "-A")
    git("commit", "-qm", "start")
    return folder
