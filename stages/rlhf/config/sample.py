"""Section `sample`."""

from typing import Annotated

from pydantic import Field

from stages.rlhf.config.base import Positive, Section, Share, StageParams

AtLeastThree = Annotated[int, Field(ge=3)]  # the injected defects repeat three rows


class SampleConfig(Section):
    """The offline sample world."""

    seed: Annotated[int, Field(ge=0)]
    demonstrations: AtLeastThree
    groups: AtLeastThree
    judge_groups: Positive
    prompts: AtLeastThree
    held_back: Annotated[float, Field(ge=0, le=0.5)]
    documents: Positive
    demo_full_right: Share
    rank_noise: Annotated[float, Field(ge=0, le=0.5)]
    confounded: bool


class SampleParams(StageParams):
    """What stage `sample` reads."""

    sample: SampleConfig
