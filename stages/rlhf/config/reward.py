"""Sections `rm` and `judge`, and `rm` and `judge` of a base model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Rate, Section, Share, StageParams
from stages.rlhf.config.models import ModelEntry, SamplingTemperature


class RewardLosses(Section):
    """What a reward model is trained on, `rm` and `judge` alike."""

    head: Literal["hybrid", "scalar"]
    loss: Literal["plackett_luce", "bradley_terry"]
    elements: Literal["groups", "pairs"]
    lm_coef: Annotated[float, Field(ge=0)]
    margin: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    odin_coef: Annotated[float, Field(ge=0)]
    length_balance: bool
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]
    resamples: Positive

    @model_validator(mode="after")
    def _pairwise_params(self) -> "RewardLosses":
        if self.loss != "bradley_terry":
            for name in ("margin", "label_smoothing"):
                if getattr(self, name) > 0:
                    raise ValueError(
                        f"{name} ({getattr(self, name)}) is of pairs, and loss {self.loss} has"
                        " none; set it to 0, or loss to bradley_terry"
                    )
        return self


class RmConfig(RewardLosses):
    """The reward model that PPO follows, for every model."""

    members: Annotated[int, Field(ge=1, le=9)]
    hard_negatives: Share
    slips: Share
    length_correction: Annotated[float, Field(ge=0)] | None


class JudgeConfig(RewardLosses):
    """The reward model that only reports and decides the gate: one member, its own questions."""

    validation_share: Annotated[float, Field(gt=0, lt=1)]


class RewardScale(Section):
    """Reward model of one base model; batches are questions with all their answers."""

    epochs: Positive
    batch_size: Positive
    micro_batch_tokens: Positive  # padding counted; a longer question is a micro-batch of its own
    learning_rate: Rate


class RmModel(ModelEntry):
    """The entry, as stage `rm` reads it."""

    rm: RewardScale


class RmParams(StageParams):
    """What stage `rm` reads."""

    validation_rows: Positive | None
    rm: RmConfig
    ppo: SamplingTemperature
    base_model: RmModel


class JudgeModel(ModelEntry):
    """The entry, as stage `judge` reads it."""

    judge: RewardScale


class JudgeParams(StageParams):
    """What stage `judge` reads."""

    validation_rows: Positive | None
    judge: JudgeConfig
    base_model: JudgeModel
