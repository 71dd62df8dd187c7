"""Section `embedder`."""

from typing import Annotated

from pydantic import Field

from stages.rlhf.config.base import Positive, Rate, Section, StageParams


class EmbedderConfig(Section):
    """The SentenceTransformer that measures similarity."""

    hub: str | None
    revision: str | None
    seed: Annotated[int, Field(ge=0)]
    vocab_size: Annotated[int, Field(ge=300)]
    dimensions: Positive
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate


class EmbedderParams(StageParams):
    """What stage `embedder` reads."""

    embedder: EmbedderConfig
