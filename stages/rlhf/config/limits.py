"""Sections `gate` and `limits`: when PPO may run, and what its policy must keep to."""

from typing import Annotated

from pydantic import Field

from stages.rlhf.config.base import Positive, Section, Share, StageParams
from stages.rlhf.config.models import ModelEntry, SamplingTemperature


class GateConfig(Section):
    """The gate before PPO."""

    resamples: Positive


class Limits(Section):
    """Against SFT, or the references; for the choice of an update and for evaluate's gates."""

    eos_slack: Share
    repetition_slack: Share
    length_band: Annotated[float, Field(gt=0)]


class GateParams(StageParams):
    """What stage `gate` reads."""

    validation_rows: Positive | None
    gate: GateConfig
    ppo: SamplingTemperature
    base_model: ModelEntry
