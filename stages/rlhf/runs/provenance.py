"""Fingerprint of everything that determines a stage's output.

Params are those that dvc.yaml declares for the stage, code is its import closure; tests hold both
to what the stage reads.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self

from ruamel.yaml import YAML

from stages.rlhf.files import RUN, file_hash, folder_hash
from stages.rlhf.runs import closure

PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "sentence_transformers", "pandas")
FOR_4_BITS = ("bitsandbytes",)


class Readable(Protocol):
    """Params of a stage, which can be read once more: `config.base.StageParams` and the whole."""

    def reread(self) -> Self:
        """The same sections as params.yaml has them now."""


@dataclass(frozen=True)
class Stage:
    """A stage about to run: its name, its params, its fingerprint file, its inputs by name."""

    name: str
    params: Readable
    code: Path  # data/check/<name>.json
    inputs: Mapping[str, Path]


@dataclass(frozen=True)
class Origin:
    """Everything that determines a stage's result, and nothing else: no time, no path."""

    stage: str
    params: dict[str, Any]
    inputs: dict[str, str]
    code: dict[str, str]
    packages: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """One sha256 for all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write run.json into a stage's out."""
        found = {"fingerprint": self.fingerprint, **asdict(self)}
        text = json.dumps(found, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / RUN).write_text(text + "\n", encoding="utf-8")

    def changed(self, now: "Origin") -> list[str]:
        """Names of the params, inputs, code files and packages that differ from `now`."""
        return [
            f"{part} {name}"
            for part, before in asdict(self).items()
            if isinstance(before, dict)
            for name in sorted({*before, *getattr(now, part)})
            if before.get(name) != getattr(now, part).get(name)
        ]


def origin(stage: Stage) -> Origin:
    """What determines the result of this run.

    Raises ValueError where an input is missing, or where the code is newer than its fingerprint.
    """
    return _origin(stage, closure.check_fingerprint(stage.name, stage.code, closure.ROOT))


def _origin(stage: Stage, code: dict[str, str]) -> Origin:
    declared = YAML(typ="safe", pure=True).load(closure.ROOT / "dvc.yaml")["stages"][stage.name]
    params = {name: _value(stage.params, name) for name in declared_params(declared)}
    used = (*PACKAGES, *(FOR_4_BITS if "nf4" in params.values() else ()))  # peft imports them, too
    loaded = [name for name in used if name in sys.modules]  # preprocess has no torch
    return Origin(
        stage.name,
        params,
        {name: _hash(path) for name, path in stage.inputs.items()},
        code,
        {"python": platform.python_version(), **{name: version(name) for name in loaded}},
    )


def declared_params(stage: Mapping[str, Any]) -> list[str]:
    """Names of the params of a stage of dvc.yaml, those of stages/models.yaml too."""
    names: list[str] = []
    for entry in stage.get("params", []):
        names += [entry] if isinstance(entry, str) else next(iter(entry.values()))
    return names


@contextmanager
def recorded(stage: Stage, out: Path) -> Iterator[None]:
    """Around the making of `out`: run.json into it, and a check that nothing changed meanwhile."""
    before = origin(stage)
    yield
    before.write(out)
    check_unchanged(before, stage)


def check_unchanged(before: Origin, stage: Stage) -> None:
    """DVC hashes params and code after a stage ends: it must have run on those.

    Raises ValueError naming what changed meanwhile.
    """
    code = closure.code_hashes(stage.name, closure.ROOT)
    now = Stage(stage.name, stage.params.reread(), stage.code, stage.inputs)
    changed = before.changed(_origin(now, code))
    if changed:
        raise ValueError(
            f"{stage.name}: changed while it ran: {', '.join(changed)}; this result was made from"
            " what was there before; run it again"
        )


def _value(params: Readable, name: str) -> Any:
    """A param, without the data's path: the data are an input."""
    found: Any = params
    for key in name.replace("models.${model}", "base_model").split("."):
        found = getattr(found, key)
    dump = getattr(found, "model_dump", None)
    return dump(mode="json", exclude={"path"}) if dump else found


def _hash(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return folder_hash(path) if path.is_dir() else file_hash(path)
