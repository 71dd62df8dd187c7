"""The whole of params.yaml: for stage `check`, for `koqa plan`, and for tests."""

from pathlib import Path

from pydantic import ConfigDict, model_validator

from stages.rlhf.config.base import FILE, NotNegative, Positive, Section, load
from stages.rlhf.config.limits import GateConfig, Limits
from stages.rlhf.config.measure import EdaConfig, EmbedderConfig, EvaluateConfig
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.config.preprocess import DataConfig, PreprocessConfig, RagConfig
from stages.rlhf.config.reward import JudgeConfig, RewardScale, RmConfig
from stages.rlhf.config.sample import SampleConfig
from stages.rlhf.config.sft import SftConfig, SftModel


class Model(SftModel):
    """One base model: all that differs from model to model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rm: RewardScale
    judge: RewardScale
    ppo: PpoScale


class Params(Section):
    """Every section."""

    model: str
    seed: NotNegative
    threads: Positive
    validation_rows: Positive | None
    data: DataConfig
    sample: SampleConfig
    preprocess: PreprocessConfig
    eda: EdaConfig
    embedder: EmbedderConfig
    rag: RagConfig
    sft: SftConfig
    rm: RmConfig
    judge: JudgeConfig
    gate: GateConfig
    ppo: PpoConfig
    limits: Limits
    evaluate: EvaluateConfig
    models: dict[str, Model]

    @model_validator(mode="after")
    def _known_model(self) -> "Params":
        if self.model not in self.models:
            raise ValueError(f"model: '{self.model}' is not one of {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _members_disagree(self) -> "Params":
        if self.ppo.uncertainty_coef > 0 and self.rm.members == 1:
            raise ValueError(
                f"ppo.uncertainty_coef ({self.ppo.uncertainty_coef}) weighs the variance over"
                " rm.members, which is 0 with 1 member; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _batches_hold_whole_prompts(self) -> "Params":
        size, answers = self.base_model.ppo.batch_size, self.ppo.answers_per_prompt
        if size % answers:
            raise ValueError(
                f"models.{self.model}.ppo.batch_size ({size}) must be divisible by"
                f" ppo.answers_per_prompt ({answers})"
            )
        return self

    def reread(self) -> "Params":
        """All of it as params.yaml has it now."""
        return load_params()

    @property
    def base_model(self) -> Model:
        """The entry of `models` that `model` names."""
        return self.models[self.model]


def load_params(path: Path = FILE) -> Params:
    """All of params.yaml, checked. Raises ValueError as `base.load` does."""
    return load(Params, path)
