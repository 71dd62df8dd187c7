"""Section `ppo`, and `ppo` of a base model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Rate, Section, Share, StageParams
from stages.rlhf.config.limits import Limits
from stages.rlhf.config.models import ModelEntry


class PpoConfig(Section):
    """PPO, for every model."""

    advantage: Literal["gae", "rloo", "grpo"]
    answers_per_prompt: Positive
    kl_coef: Annotated[float, Field(ge=0)]
    kl_target: Annotated[float, Field(gt=0)] | None
    kl_horizon: Positive
    gamma: Share
    lam: Share
    cliprange: Annotated[float, Field(gt=0, lt=1)]
    cliprange_value: Annotated[float, Field(gt=0)]
    epochs: Positive
    temperature: Annotated[float, Field(gt=0)]
    missing_eos_penalty: Annotated[float, Field(ge=0)]
    repetition_penalty: Annotated[float, Field(ge=0)]
    copy_penalty: Annotated[float, Field(ge=0)]
    score_clip: Annotated[float, Field(gt=0)]
    uncertainty_coef: Annotated[float, Field(ge=0)]
    value_warmup: Annotated[int, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    stop_kl_batch: Annotated[float, Field(gt=0)]
    stop_kl_run: Annotated[float, Field(gt=0)]
    evaluate_every: Positive
    patience: Positive
    require_gate: bool

    @model_validator(mode="after")
    def _groups_compare(self) -> "PpoConfig":
        if self.advantage != "gae" and self.answers_per_prompt < 2:
            raise ValueError(
                f"advantage {self.advantage} compares the answers to one prompt, and"
                f" answers_per_prompt is {self.answers_per_prompt}; expected at least 2"
            )
        return self

    @property
    def warmup(self) -> int:
        """Updates that train the value model alone; 0 where there is none."""
        return self.value_warmup if self.advantage == "gae" else 0


class PpoScale(Section):
    """PPO of one base model; batches are responses."""

    updates: Positive
    batch_size: Positive
    minibatches: Positive
    micro_batch_tokens: Positive  # padding counted; a longer row is a micro-batch of its own
    learning_rate: Rate
    value_learning_rate: Rate
    corpus_check: Annotated[float, Field(ge=0)]  # sd of the reward; more than 0 needs a corpus

    @model_validator(mode="after")
    def _minibatches_divide(self) -> "PpoScale":
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by"
                f" minibatches ({self.minibatches})"
            )
        return self


class PpoModel(ModelEntry):
    """The entry, as stage `ppo` reads it."""

    ppo: PpoScale


class PpoParams(StageParams):
    """What stage `ppo` reads."""

    validation_rows: Positive | None
    ppo: PpoConfig
    limits: Limits
    base_model: PpoModel
