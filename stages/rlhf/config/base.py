"""How a stage reads its parameters: frozen, closed and bounded, its own sections alone.

A stage names its sections in a subclass of `StageParams`; `whole.Params` has all of them, and stage
`check` validates the file by it: a misspelt parameter fails in a second, whichever stage reads it.
"""

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

FILE = Path("params.yaml")
MODELS = "stages/models.yaml"  # section `models`, apart because DVC shows all of params.yaml
RETIRED = {  # keys of earlier versions -> what became of them
    "kept_tokens": "PPO keeps no activations between rollout and update",
    "ppo.processes": "every stage runs on several now: KOQA_PROCESSES=4 dvc repro",
    **dict.fromkeys(
        (
            f"embedder.{key}"
            for key in ("seed", "vocab_size", "dimensions", "epochs", "batch_size", "learning_rate")
        ),
        "no embedder is trained; the default one is a package's, see embedder.hub for others",
    ),
}

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]  # a learning rate


class Section(BaseModel):
    """One mapping of params.yaml: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class View(BaseModel):
    """Those keys of a mapping that a stage reads; the others are another stage's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StageParams(View):
    """What every stage may read; a stage's own class adds its sections."""

    model: str
    seed: NotNegative
    threads: Positive

    @model_validator(mode="before")
    @classmethod
    def _put_base_model(cls, raw: Any) -> Any:
        """`base_model`, where a stage wants one, is the entry of `models` that `model` names."""
        if "base_model" not in cls.model_fields or "base_model" in raw:
            return raw
        models, name = raw.get("models") or {}, raw.get("model")
        if name not in models:
            raise ValueError(f"model: {name!r} is not one of {', '.join(models)}")
        return {**raw, "base_model": models[name]}

    def reread(self) -> Self:
        """The same sections as params.yaml has them now."""
        return load(type(self))


Params = TypeVar("Params", bound=BaseModel)


def load(schema: type[Params], path: Path = FILE) -> Params:
    """Read params.yaml and stages/models.yaml, and check the sections of `schema`.

    Raises ValueError naming the file, the key, the value and the expectation.
    """
    raw = _read(path)
    if "models" in raw:
        raise ValueError(f"{path}: models: no such key; base models are in {MODELS}")
    models = _read(path.parent / MODELS)
    if set(models) != {"models"}:
        found = ", ".join(map(str, models))
        raise ValueError(f"{path.parent / MODELS}: expected one section, models, not {found}")
    try:
        return schema.model_validate({**raw, **models})
    except ValidationError as error:
        faults: dict[Path, list[str]] = {}
        for problem in error.errors():
            line = _explain(problem, f"models.{raw.get('model')}")
            file = path.parent / MODELS if line.startswith("models.") else path
            faults.setdefault(file, []).append(line)
        texts = [f"{file}: " + "; ".join(lines) for file, lines in faults.items()]
        raise ValueError("; ".join(texts)) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run from the repository's root")
    try:
        raw = YAML(typ="safe", pure=True).load(path)
    except YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping, not {type(raw).__name__}")
    return raw


def _explain(problem: Any, base_model: str) -> str:
    key = ".".join(base_model if part == "base_model" else str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        retired = RETIRED.get(key) or RETIRED.get(str(problem["loc"][-1]))
        why = f"retired: {retired}; delete it" if retired else "no such key"
        return f"{key} = {problem['input']!r}: {why}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r}: {message}"
