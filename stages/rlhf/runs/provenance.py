"""What a stage's result comes of: params, inputs, code and packages, each by value or sha256.

Params and code are those that dvc.yaml declares for the stage; tests hold that to what it reads.
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
from typing import Any

from ruamel.yaml import YAML

from stages.rlhf.config.base import StageParams
from stages.rlhf.files import RUN, file_hash, folder_hash

ROOT = Path(__file__).parents[3]
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "sentence_transformers", "pandas")


@dataclass(frozen=True)
class Origin:
    """Everything that decides a stage's result, and nothing that does not: no time, no place."""

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
        """What is another thing now, each by its name."""
        return [
            f"{part} {name}"
            for part, before in asdict(self).items()
            if isinstance(before, dict)
            for name in sorted({*before, *getattr(now, part)})
            if before.get(name) != getattr(now, part).get(name)
        ]


def origin(stage: str, params: StageParams, inputs: Mapping[str, Path]) -> Origin:
    """A stage's, from its params and its input files or folders by name.

    Raises ValueError where an input is missing.
    """
    declared = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"][stage]
    code = [name for name in declared["deps"] if name.startswith("stages/")]
    loaded = [name for name in PACKAGES if name in sys.modules]  # preprocess has no torch
    return Origin(
        stage,
        {name: _value(params, name) for name in declared["params"]},
        {name: _hash(path) for name, path in inputs.items()},
        {name: file_hash(ROOT / name) for name in code},
        {"python": platform.python_version(), **{name: version(name) for name in loaded}},
    )


@contextmanager
def recorded(
    stage: str, params: StageParams, inputs: Mapping[str, Path], out: Path
) -> Iterator[None]:
    """Around the making of `out`: run.json into it, and a check that nothing changed meanwhile."""
    before = origin(stage, params, inputs)
    yield
    before.write(out)
    check_unchanged(before, params, inputs)


def check_unchanged(before: Origin, params: StageParams, inputs: Mapping[str, Path]) -> None:
    """DVC hashes params and code after a stage ends: it must have run on those.

    Raises ValueError naming what was changed meanwhile.
    """
    changed = before.changed(origin(before.stage, params.reread(), inputs))
    if changed:
        raise ValueError(
            f"{before.stage}: changed while it ran: {', '.join(changed)}; this result is of"
            " what was there before; run again"
        )


def _value(params: StageParams, name: str) -> Any:
    """A param, without the place of the data: what lies there is an input."""
    found: Any = params
    for key in name.replace("models.${model}", "base_model").split("."):
        found = getattr(found, key)
    if not hasattr(found, "model_dump"):
        return found
    return found.model_dump(mode="json", exclude={"path"})


def _hash(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return folder_hash(path) if path.is_dir() else file_hash(path)
