"""The README says what the committed metrics say, and its commands are the ones CI runs."""

import json
import subprocess

import pytest

from tests.readme import ROOT, TABLES


def committed(path: str) -> str | None:
    """A file as it stands in the last commit; None where git has none."""
    found = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True)
    return found.stdout.decode() if found.returncode == 0 else None


@pytest.mark.parametrize("name", TABLES)
def test_figures_are_those_of_the_committed_metrics(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if committed("metrics/evaluate.json") is None:
        pytest.fail("metrics/evaluate.json is not committed")

    def from_git(stage: str) -> dict[str, object]:
        return dict(json.loads(committed(f"metrics/{stage}.json") or "{}"))

    monkeypatch.setattr("tests.readme.metrics", from_git)
    readme = committed("README.md") or ""
    block = f"<!-- {name} -->\n{TABLES[name]()}\n<!-- /{name} -->"
    assert block in readme, f"run `python -m tests.readme`: block {name} is out of date"


def test_the_two_commands_stand_in_readme_and_in_ci() -> None:
    readme, ci = ((ROOT / name).read_text("utf-8") for name in ("README.md", ".ci/run"))
    assert 'pip install -e ".[test]" && dvc repro' in readme
    assert 'pip install -q -e ".[test]" && dvc repro' in ci
    assert "\npytest\n" in readme
    assert "\npytest\n" in ci
