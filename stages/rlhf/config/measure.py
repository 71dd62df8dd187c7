"""Sections `eda`, `embedder` and `evaluate`: what describes and measures."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Section, StageParams, View
from stages.rlhf.config.limits import Limits
from stages.rlhf.config.models import ModelEntry, SamplingTemperature


class EdaConfig(Section):
    """Figures of the data."""

    top_categories: Positive


class EmbedderConfig(Section):
    """What measures similarity: a SentenceTransformer of the hub, or by default a package's."""

    hub: str | None
    revision: str | None
    prefix: str

    @model_validator(mode="after")
    def _of_a_hub_model(self) -> "EmbedderConfig":
        if self.hub is None and (self.revision is not None or self.prefix):
            name, value = ("prefix", self.prefix) if self.prefix else ("revision", self.revision)
            raise ValueError(
                f"{name} is {value!r}, which needs a model of the hub, but hub is null"
            )
        return self


class EvaluateConfig(Section):
    """The final comparison on test."""

    max_questions: Positive | None
    samples_shown: Positive
    best_of: Annotated[int, Field(ge=2)]
    resamples: Positive


class EdaParams(StageParams):
    """What stage `eda` reads."""

    eda: EdaConfig


class EmbedderParams(StageParams):
    """What stage `embedder` reads."""

    embedder: EmbedderConfig


class DataSource(View):
    """The format of the rows, without their path."""

    source: Literal["sample", "aihub", "kochatgpt", "jsonl"]


class EvaluateParams(StageParams):
    """What stage `evaluate` reads."""

    data: DataSource
    evaluate: EvaluateConfig
    limits: Limits
    ppo: SamplingTemperature
    base_model: ModelEntry
