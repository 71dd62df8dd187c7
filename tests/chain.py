"""The stages of dvc.yaml run in this process by their own commands, in a folder of their own."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import BaseModel
from ruamel.yaml import YAML

from stages.rlhf.config.base import load
from tests.conftest import ROOT, SMALL, write_params

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# All of them before one is run: run.json names the packages that the process has loaded.
MODULES = {name: import_module(f"stages.{name}") for name in STAGES}


class RecordedParams:
    """Params that note which leaves were read."""

    def __init__(self, value: Any, name: str, seen: set[str]) -> None:
        self._value, self._name, self._seen = value, name, seen

    def __getattr__(self, key: str) -> Any:
        value = getattr(self._value, key)
        if callable(value):
            return value
        name = f"{self._name}.{key}" if self._name else key
        if key == "base_model":
            name = "models.${model}"
        if isinstance(value, BaseModel):
            return RecordedParams(value, name, self._seen)
        self._seen.add(name)
        return value


def run_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Run a stage by the command of dvc.yaml; the params it read."""
    seen: set[str] = set()
    module = MODULES[name]
    if name != "check":  # which reads all of it
        monkeypatch.setattr(module, "load", lambda schema: RecordedParams(load(schema), "", seen))
    result = CliRunner().invoke(module.main, STAGES[name]["cmd"].split()[3:])
    assert result.exit_code == 0, f"{name}: {result.output}\n{result.exception!r}"
    return seen


def run_chain(folder: Path, **params: Any) -> dict[str, set[str]]:
    """Run every stage below `folder` with SMALL params, or other ones; the params each read."""
    write_params(folder, **{**SMALL, **params})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("KOQA_WORK", raising=False)
        threads = torch.get_num_threads()
        try:
            return {name: run_stage(name, patch) for name in STAGES}
        finally:
            torch.set_num_threads(threads)
