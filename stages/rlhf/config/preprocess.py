"""Sections `data`, `preprocess` and `rag`: the rows that the models read."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.rlhf.config.base import Positive, Section, Share, StageParams
from stages.rlhf.config.models import ModelEntry

Column = Literal[
    "id",
    "question",
    "answer",
    "answers",
    "ranks",
    "scores",
    "chosen",
    "rejected",
    "messages",
    "category",
    "question_type",
    "kind",
    "must_contain",
    "split",
    "defects",
]


class DataConfig(Section):
    """Where the rows come from."""

    source: Literal["sample", "aihub", "kochatgpt", "jsonl"]
    path: Path
    columns: dict[Column, str]  # for jsonl: our name -> the source's

    @model_validator(mode="after")
    def _columns_of_jsonl(self) -> "DataConfig":
        if self.columns and self.source != "jsonl":
            raise ValueError(f"columns is for source jsonl; source is {self.source}")
        return self


class PreprocessConfig(Section):
    """Cleaning and splitting."""

    seed: Annotated[int, Field(ge=0)]
    validation_share: Annotated[float, Field(gt=0, lt=0.5)]
    test_share: Annotated[float, Field(gt=0, lt=0.5)]
    judge_share: Annotated[float, Field(gt=0, le=0.5)]
    judge_groups_min: Annotated[int, Field(ge=0)]
    long_answers: Literal["clip", "drop"]
    near_duplicate: Annotated[float, Field(gt=0.5, le=1)]
    max_items: Positive | None


class PreprocessParams(StageParams):
    """What stage `preprocess` reads."""

    data: DataConfig
    preprocess: PreprocessConfig
    base_model: ModelEntry


class RagConfig(Section):
    """Questions with passages of a library, and answers that cite them."""

    enabled: bool
    path: Path
    tokens: Literal["pieces", "morphemes", "both"]
    dense: bool
    characters: Annotated[int, Field(ge=20)]
    passages: Annotated[int, Field(ge=2)]
    passage_tokens: Positive
    right: Share
    absent: Share
    reading: Annotated[int, Field(ge=0)]

    @property
    def tokenisers(self) -> tuple[Literal["pieces", "morphemes"], ...]:
        """Those of the lexical index."""
        return ("pieces", "morphemes") if self.tokens == "both" else (self.tokens,)

    @model_validator(mode="after")
    def _shares_of_one(self) -> "RagConfig":
        if self.right + self.absent > 1:
            raise ValueError(
                f"right ({self.right}) and absent ({self.absent}) are shares of the training rows;"
                " expected no more than 1 together"
            )
        return self


class IndexParams(StageParams):
    """What stage `index` reads."""

    rag: RagConfig
