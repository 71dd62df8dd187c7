"""Code fingerprints: exactly what a stage imports, and nothing that cannot change its result."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stages import check
from stages.rlhf.runs.closure import check_fingerprint, code_hashes, stage_names
from tests.conftest import ROOT, naming, write_params

LOADED = """
import importlib, json, sys
found = {}
for stage in sys.argv[1:]:
    for name in [n for n in sys.modules if n.split(".")[0] == "stages"]:
        del sys.modules[name]
    importlib.import_module(f"stages.{stage}")
    modules = [m for n, m in sys.modules.items() if n.split(".")[0] == "stages"]
    found[stage] = sorted(m.__file__ for m in modules if m.__file__)
print(json.dumps(found))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    return tmp_path


def moved(tree: Path, file: str, old: str, new: str) -> set[str]:
    """The stages whose fingerprint changes by an edit of a file."""
    before = {stage: code_hashes(stage, tree) for stage in stage_names(tree)}
    text = (tree / file).read_text("utf-8")
    assert old in text
    (tree / file).write_text(text.replace(old, new, 1), "utf-8")
    return {stage for stage, hashes in before.items() if code_hashes(stage, tree) != hashes}


def test_the_closure_is_what_python_loads() -> None:
    names = stage_names()
    command = [sys.executable, "-c", LOADED, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    for stage in names:
        hashed = {str(ROOT / file) for file in code_hashes(stage) if file.endswith(".py")}
        bare = {file for file in set(loaded[stage]) - hashed if Path(file).name == "__init__.py"}
        assert set(loaded[stage]) - bare == hashed, stage


def test_templates_are_code() -> None:
    assert "stages/rlhf/chat_template.jinja" in code_hashes("ppo")
    assert "stages/rlhf/report/report.html.jinja" in code_hashes("evaluate")


def test_a_docstring_of_a_figure_reruns_nothing(tree: Path) -> None:
    file = "stages/rlhf/report/figures.py"
    assert moved(tree, file, '"""', '"""Another first sentence. ') == set()
    assert moved(tree, file, "import numpy", "# a comment\n\nimport numpy") == set()


def test_a_figure_s_code_reruns_the_stages_that_draw(tree: Path) -> None:
    file = "stages/rlhf/report/figures.py"
    found = moved(tree, file, "import numpy", "ANOTHER = 1\nimport numpy")
    assert found == {"eda", "rm", "evaluate"}


def test_a_new_ppo_knob_reruns_ppo_alone(tree: Path) -> None:
    """And what reads PPO's outs: evaluate. `check` itself is validation."""
    knob = "    new_knob: float\n    kl_coef:"
    assert moved(tree, "stages/rlhf/config/ppo.py", "    kl_coef:", knob) == {"check", "ppo"}


def test_relative_imports_and_broken_code_are_named(tree: Path) -> None:
    file = tree / "stages" / "rlhf" / "chat.py"
    text = file.read_text("utf-8")
    file.write_text(f"from . import hub\n{text}", "utf-8")
    with pytest.raises(ValueError, match=naming("chat.py", "line 1", "relative")):
        code_hashes("ppo", tree)
    file.write_text("def broken(:\n", "utf-8")
    with pytest.raises(ValueError, match=naming("chat.py", "line 1", "Python")):
        code_hashes("ppo", tree)


def test_stage_check_writes_one_fingerprint_per_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(check.main, ["--out", "data/check"])
    assert result.exit_code == 0, result.output
    written = {file.stem for file in (tmp_path / "data" / "check").glob("*.json")}
    assert written == {*stage_names(), "model"} - {"check"}
    model = tmp_path / "data" / "check" / "model.json"
    assert json.loads(model.read_text("utf-8")) == {}, "tiny is made here, of no other files"
    file = tmp_path / "data" / "check" / "ppo.json"
    assert check_fingerprint("ppo", file) == code_hashes("ppo")


def test_a_stale_fingerprint_is_refused(tmp_path: Path) -> None:
    """As under `dvc repro --single-item`, where stage check does not run."""
    file = tmp_path / "ppo.json"
    with pytest.raises(ValueError, match=naming(file, "dvc repro")):
        check_fingerprint("ppo", file)
    old = {**code_hashes("ppo"), "stages/rlhf/chat.py": "0" * 64}
    file.write_text(json.dumps(old), "utf-8")
    with pytest.raises(ValueError, match=naming(file, "stages/rlhf/chat.py")):
        check_fingerprint("ppo", file)


def test_a_misspelt_knob_of_any_stage_fails_in_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path, **{"models.gemma2-2b.ppo.learning_rat": 1e-5})
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(check.main, ["--out", "data/check"])
    assert result.exit_code == 1
    assert re.search(naming("models.gemma2-2b.ppo.learning_rat", 1e-05), result.output)
    assert len(result.output.splitlines()) == 1


def test_a_retired_key_says_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path, **{"models.tiny.ppo.kept_tokens": 8192})
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(check.main, ["--out", "data/check"])
    assert result.exit_code == 1
    assert re.search(naming("models.tiny.ppo.kept_tokens", 8192, "retired"), result.output)
    assert len(result.output.splitlines()) == 1
