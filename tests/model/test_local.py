"""A base model in a folder of this machine: known by its files, wherever they are."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stages import base, check
from stages.rlhf.config.whole import load_params
from stages.rlhf.files import file_hash
from stages.rlhf.hub import local_files
from stages.rlhf.model.store import load_causal_lm, load_tokenizer, model_hash, weights_folder
from tests.conftest import ROOT, naming, write_fingerprint, write_params
from tests.model_fixtures import save_base

NO_MODEL = {f"models.micro.{key}": None for key in ("hub", "architecture", "base")}


def write_local(folder: Path, path: Path | None, **params: Any) -> None:
    write_params(folder, **{"model": "micro", **NO_MODEL, "models.micro.path": path, **params})


def invoke_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Stages check, which must work, and base in `folder`."""
    monkeypatch.chdir(folder)
    checked = CliRunner().invoke(check.main, ["--out", "data/check"])
    assert checked.exit_code == 0, checked.output
    words = "--model data/check/model.json --rows none --out data/base --metrics metrics/base.json"
    code = write_fingerprint(folder, "base")
    return CliRunner().invoke(base.main, [*words.split(), "--code", str(code)])


def run_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both, which must work; data/base."""
    made = invoke_base(folder, monkeypatch)
    assert made.exit_code == 0, made.output
    return folder / "data" / "base"


def test_a_moved_folder_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deep"
    save_base(here)
    (here / "README.md").write_text("of no concern")
    write_local(tmp_path, here)
    found = run_base(tmp_path, monkeypatch)
    checked = (tmp_path / "data" / "check" / "model.json").read_bytes()
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads(checked) == {
        name: file_hash(here / name) for name in {*names, "tokenizer_config.json"}
    }
    assert weights_folder(found) == here
    first, hashed = model_hash(found), {p.name: p.read_bytes() for p in found.iterdir()}
    assert set(hashed) == {"pointer.json", "run.json"}
    for content in hashed.values():
        assert str(tmp_path).encode() not in content

    there.parent.mkdir()
    here.rename(there)
    write_local(tmp_path, Path("there/deep"))
    found = run_base(tmp_path, monkeypatch)
    assert (tmp_path / "data" / "check" / "model.json").read_bytes() == checked
    assert {p.name: p.read_bytes() for p in found.iterdir()} == hashed
    assert model_hash(found) == first
    assert load_causal_lm(found, "float32").config.model_type == "llama"
    assert load_tokenizer(found).eos_token == "<eos>"


def test_other_weights_are_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(tmp_path / "here")
    write_local(tmp_path, tmp_path / "here")
    found = run_base(tmp_path, monkeypatch)
    first = model_hash(found)
    save_base(tmp_path / "here", seed=1)
    with pytest.raises(ValueError, match=naming("model.safetensors", "dvc repro --force check")):
        load_causal_lm(found, "float32")
    assert model_hash(run_base(tmp_path, monkeypatch)) != first
    load_causal_lm(found, "float32")
    write_local(tmp_path, None, **{"models.micro.hub": "org/name"})
    with pytest.raises(ValueError, match=naming("pointer.json", "path")):
        load_causal_lm(found, "float32")


@pytest.mark.parametrize(
    ("lost", "added", "facts"),
    [
        ("model.safetensors", None, ("weights", "*.safetensors", "config.json")),
        ("model.safetensors", "pytorch_model.bin", ("pytorch_model.bin", "pickle")),
        ("config.json", None, ("config", "config.json")),
        ("tokenizer.json", None, ("tokenizer", "tokenizer.json")),
        (None, None, ("no such folder",)),
    ],
)
def test_what_is_no_model_is_refused_by_check(
    lost: str | None,
    added: str | None,
    facts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_base(tmp_path / "here")
    if lost:
        (folder / lost).unlink()
    else:
        shutil.rmtree(folder)
    if added:
        (folder / added).write_bytes(b"")
    write_local(tmp_path, folder)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(check.main, ["--out", "data/check"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    with pytest.raises(ValueError, match=naming(folder, *facts)):
        local_files(folder)


@pytest.mark.parametrize("family", ["exaone", "vit"])
def test_a_family_that_cannot_be_trained_is_refused_by_base(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_base(tmp_path / "here") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": family}))
    write_local(tmp_path, tmp_path / "here")
    result = invoke_base(tmp_path, monkeypatch)
    assert result.exit_code == 1
    assert re.search(naming("Error: ", file, family), result.output)
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"models.micro.hub": "org/name"}, ("hub and path",)),
        ({"models.micro.path": None}, ("given: none",)),
        ({"models.micro.revision": "main"}, ("revision", "main", "hub is null")),
        (
            {"models.micro.base": {"steps": 1, "batch_size": 1, "learning_rate": 0.1}},
            ("base", "architecture"),
        ),
    ],
)
def test_a_model_has_one_origin(
    params: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    write_local(tmp_path, tmp_path, **params)
    with pytest.raises(ValueError, match=naming("models.yaml", "models.micro", *facts)):
        load_params(tmp_path / "params.yaml")


def test_models_of_hubs_need_no_more_than_a_path(tmp_path: Path) -> None:
    """One word changes the model, and one more takes it from a folder."""
    models = load_params(ROOT / "params.yaml").models
    for name in (name for name, model in models.items() if model.hub):
        changed = {"model": name, f"models.{name}.hub": None, f"models.{name}.path": tmp_path}
        write_params(tmp_path, **changed)
        assert load_params(tmp_path / "params.yaml").base_model.path == tmp_path
