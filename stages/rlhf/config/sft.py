"""Section `sft`, and `sft` of a base model; stage `base` reads the entry alone."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Rate, Section, Share, StageParams
from stages.rlhf.config.models import ModelEntry


class SftConfig(Section):
    """Supervised fine-tuning, for every model."""

    data: Literal["demonstrations", "rank1"]
    rank1_epochs: Positive
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]


class SftScale(Section):
    """SFT of one base model; batches are rows."""

    method: Literal["full", "lora"]
    epochs: Positive
    batch_size: Positive
    micro_batch_size: Positive
    learning_rate: Rate

    @model_validator(mode="after")
    def _micro_divides(self) -> "SftScale":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by"
                f" micro_batch_size ({self.micro_batch_size})"
            )
        return self


class SftModel(ModelEntry):
    """The entry, as stage `sft` reads it."""

    sft: SftScale

    @model_validator(mode="after")
    def _small_steps_count(self) -> Self:
        if self.sft.method == "full" and self.dtype == "bfloat16":
            raise ValueError(
                "sft.method full trains the weights themselves, and in dtype bfloat16 small steps"
                " round to nothing; expected dtype mixed or float32, or sft.method lora"
            )
        if self.sft.method == "full" and self.dtype == "nf4":
            raise ValueError(
                "sft.method full trains the weights themselves, and in dtype nf4 they are frozen;"
                " expected dtype mixed or float32, or sft.method lora"
            )
        return self


class SftParams(StageParams):
    """What stage `sft` reads."""

    validation_rows: Positive | None
    sft: SftConfig
    base_model: SftModel
