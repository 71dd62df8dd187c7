"""Sections `eda`, `embedder` and `evaluate`: what describes and measures."""

from typing import Annotated, Literal

from pydantic import Field

from stages.rlhf.config.base import NotNegative, Positive, Rate, Section, StageParams, View
from stages.rlhf.config.limits import Limits
from stages.rlhf.config.models import ModelEntry, SamplingTemperature


class EdaConfig(Section):
    """Figures of the data."""

    top_categories: Positive


class EmbedderConfig(Section):
    """The SentenceTransformer that measures similarity."""

    hub: str | None
    revision: str | None
    seed: NotNegative
    vocab_size: Annotated[int, Field(ge=300)]
    dimensions: Positive
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate


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
