"""Section `sft`, and `sft` of a base model; stage `base` reads the entry alone."""

from typing import Annotated, Literal

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


class SftParams(StageParams):
    """What stage `sft` reads."""

    sft: SftConfig
    base_model: SftModel
