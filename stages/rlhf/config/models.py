"""What several stages read of a base model's entry in `models`."""

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
    """Rows decoded at once outside PPO's rollouts."""

    batch_size: Positive


class ModelEntry(View):
    """One base model: where it comes from, its limits, its adapters."""

    hub: str | None
    revision: str | None
    dtype: Literal["float32", "bfloat16", "mixed"]
    max_prompt_tokens: Positive
    max_answer_tokens: Positive
    architecture: Architecture | None
    base: Pretraining | None
    lora: Lora
    generate: GenerationScale

    @model_validator(mode="after")
    def _hub_or_made(self) -> "ModelEntry":
        made = self.architecture is not None and self.base is not None
        if (self.hub is None) != made:
            raise ValueError(
                "either hub is an id and architecture and base are null,"
                f" or hub is null and both are given (hub: {self.hub})"
            )
        return self


class SamplingTemperature(View):
    """How the policy samples, also where a stage before PPO samples for its sake."""

    temperature: Annotated[float, Field(gt=0)]


class BaseParams(StageParams):
    """What stage `base` reads."""

    base_model: ModelEntry
