"""Sections `data` and `preprocess`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.rlhf.config.base import Positive, Section, StageParams
from stages.rlhf.config.models import ModelEntry


class DataConfig(Section):
    """Where the rows come from."""

    source: Literal["sample", "aihub", "kochatgpt", "jsonl"]
    path: Path


class PreprocessConfig(Section):
    """Cleaning and splitting."""

    seed: Annotated[int, Field(ge=0)]
    validation_share: Annotated[float, Field(gt=0, lt=0.5)]
    test_share: Annotated[float, Field(gt=0, lt=0.5)]
    judge_share: Annotated[float, Field(ge=0, le=0.5)]
    long_answers: Literal["clip", "drop"]
    near_duplicate: Annotated[float, Field(gt=0.5, le=1)]
    max_items: Positive | None


class PreprocessParams(StageParams):
    """What stage `preprocess` reads."""

    data: DataConfig
    preprocess: PreprocessConfig
    base_model: ModelEntry
