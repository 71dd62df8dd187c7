"""What several stages read of a base model's entry in `models`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Rate, Section, StageParams, View


class Architecture(Section):
    """A Llama trained from scratch, with tied embeddings."""

    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Positive
    intermediate_size: Positive
    layers: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide(self) -> "Architecture":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by heads ({self.heads})"
            )
        if self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) over heads ({self.heads}) must be even: rotary"
                " position embeddings turn pairs"
            )
        return self


class Lora(Section):
    """Adapters on every linear layer of the backbone; dropout is 0."""

    r: Positive
    alpha: Positive


class Pretraining(Section):
    """Steps of next-token training on the corpus."""

    steps: Positive
    batch_size: Positive
    learning_rate: Rate


class GenerationScale(Section):
    """How responses are decoded: how many rows at once, and by what."""

    batch_size: Positive
    engine: Literal["koqa", "transformers"]


class ModelEntry(View):
    """One base model: where it comes from, its limits, its adapters."""

    hub: str | None
    revision: str | None
    path: Path | None
    dtype: Literal["float32", "bfloat16", "mixed", "nf4"]
    max_prompt_tokens: Positive
    max_answer_tokens: Positive
    architecture: Architecture | None
    base: Pretraining | None
    lora: Lora
    generate: GenerationScale

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelEntry":
        given = [n for n in ("hub", "path", "architecture") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                "expected exactly one of hub (an id), path (a folder) and architecture (made here),"
                f" the others null; given: {found}"
            )
        if (self.architecture is None) != (self.base is None):
            raise ValueError("base is given exactly where architecture is: it trains it")
        if self.architecture is not None and self.dtype == "nf4":
            raise ValueError(
                "dtype nf4 holds frozen weights, and a model with an architecture is trained from"
                " scratch; expected dtype mixed or float32, or a hub or path in its stead"
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision ({self.revision}) is of a hub model; hub is null")
        return self


class SamplingTemperature(View):
    """How the policy samples, also where a stage before PPO samples for its sake."""

    temperature: Annotated[float, Field(gt=0)]


class Passages(View):
    """How long a prompt may be with passages."""

    enabled: bool
    passage_tokens: Positive


class BaseParams(StageParams):
    """What stage `base` reads."""

    rag: Passages
    base_model: ModelEntry


class _Local(View):
    path: Path | None


class LocalModel(StageParams):
    """The folder of a model that comes from no hub; whoever loads the model reads it."""

    base_model: _Local
