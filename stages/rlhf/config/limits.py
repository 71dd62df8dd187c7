"""Section `gate`: when PPO may run."""

from stages.rlhf.config.base import Positive, Section, StageParams
from stages.rlhf.config.models import ModelEntry, SamplingTemperature


class GateConfig(Section):
    """The gate before PPO."""

    resamples: Positive


class GateParams(StageParams):
    """What stage `gate` reads."""

    gate: GateConfig
    ppo: SamplingTemperature
    base_model: ModelEntry
