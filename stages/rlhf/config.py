"""params.yaml, checked: frozen, closed and bounded, so that a misspelt knob fails in a second."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]  # a learning rate


class Section(BaseModel):
    """One mapping of params.yaml: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Where the rows come from."""

    source: Literal["sample", "aihub", "kochatgpt", "jsonl"]
    path: Path


class Sample(Section):
    """The offline sample world."""

    seed: Annotated[int, Field(ge=0)]
    demonstrations: Positive
    groups: Positive
    judge_groups: Positive
    prompts: Positive
    documents: Positive
    demo_full_right: Share
    rank_noise: Annotated[float, Field(ge=0, le=0.5)]
    confounded: bool


class Preprocess(Section):
    """Cleaning and splitting."""

    seed: Annotated[int, Field(ge=0)]
    validation_share: Annotated[float, Field(gt=0, lt=0.5)]
    test_share: Annotated[float, Field(gt=0, lt=0.5)]
    judge_share: Annotated[float, Field(ge=0, le=0.5)]
    long_answers: Literal["clip", "drop"]
    near_duplicate: Annotated[float, Field(gt=0.5, le=1)]
    max_items: Positive | None


class Eda(Section):
    """Figures of the data."""

    top_categories: Positive


class Embedder(Section):
    """The SentenceTransformer that measures similarity."""

    hub: str | None
    revision: str | None
    seed: Annotated[int, Field(ge=0)]
    vocab_size: Annotated[int, Field(ge=300)]
    dimensions: Positive
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate


class Sft(Section):
    """Supervised fine-tuning, whatever the model."""

    data: Literal["demonstrations", "rank1"]
    rank1_epochs: Positive
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]


class RewardLosses(Section):
    """What a reward model is trained on, `rm` and `judge` alike."""

    head: Literal["hybrid", "scalar"]
    loss: Literal["plackett_luce", "bradley_terry"]
    elements: Literal["groups", "pairs"]
    lm_coef: Annotated[float, Field(ge=0)]
    margin: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    odin_coef: Annotated[float, Field(ge=0)]
    length_balance: bool
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]
    resamples: Positive

    @model_validator(mode="after")
    def _pairwise_knobs(self) -> "RewardLosses":
        if self.loss != "bradley_terry":
            for name in ("margin", "label_smoothing"):
                if getattr(self, name) > 0:
                    raise ValueError(
                        f"{name} ({getattr(self, name)}) is of pairs, and loss {self.loss} has"
                        " none; set it to 0, or loss to bradley_terry"
                    )
        return self


class Rm(RewardLosses):
    """The reward model that PPO follows, whatever the model."""

    members: Annotated[int, Field(ge=1, le=9)]
    hard_negatives: Share
    length_correction: Annotated[float, Field(ge=0)] | None


class Judge(RewardLosses):
    """The reward model that only reports and opens the gate: one member, questions of its own."""

    validation_share: Annotated[float, Field(gt=0, lt=1)]


class Ppo(Section):
    """PPO, whatever the model."""

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
    processes: Positive


class Evaluate(Section):
    """The final comparison on test."""

    max_questions: Positive | None
    samples_shown: Positive
    best_of: Annotated[int, Field(ge=2)]
    resamples: Positive


class Architecture(Section):
    """A Llama made from nothing, with tied embeddings."""

    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Positive
    intermediate_size: Positive
    layers: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide(self) -> "Architecture":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by heads ({self.heads})"
            )
        return self


class Lora(Section):
    """Adapters on every linear layer of the backbone; dropout is 0."""

    r: Positive
    alpha: Positive


class Pretraining(Section):
    """Steps of next-token training on the corpus."""

    steps: Positive
    batch_size: Positive
    learning_rate: Rate


class SftSettings(Section):
    """SFT of one base model; batches are rows."""

    method: Literal["full", "lora"]
    epochs: Positive
    batch_size: Positive
    micro_batch_size: Positive
    learning_rate: Rate

    @model_validator(mode="after")
    def _micro_divides(self) -> "SftSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by"
                f" micro_batch_size ({self.micro_batch_size})"
            )
        return self


class RmSettings(Section):
    """Reward model of one base model; batches are questions with all their answers."""

    epochs: Positive
    batch_size: Positive
    micro_batch_tokens: Positive  # padding counted; a longer question is a micro-batch of its own
    learning_rate: Rate


class PpoSettings(Section):
    """PPO of one base model; batches are answers."""

    updates: Positive
    batch_size: Positive
    minibatches: Positive
    micro_batch_tokens: Positive  # padding counted; a longer answer is a micro-batch of its own
    kept_tokens: NotNegative  # of a first minibatch whose activations are kept from its scoring
    learning_rate: Rate
    value_learning_rate: Rate

    @model_validator(mode="after")
    def _minibatches_divide(self) -> "PpoSettings":
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by"
                f" minibatches ({self.minibatches})"
            )
        return self


class GenerateSettings(Section):
    """Rows decoded at once outside PPO's rollouts."""

    batch_size: Positive


class Model(Section):
    """One base model: what differs from model to model."""

    hub: str | None
    revision: str | None
    dtype: Literal["float32", "bfloat16", "mixed"]
    max_prompt_tokens: Positive
    max_answer_tokens: Positive
    architecture: Architecture | None
    base: Pretraining | None
    lora: Lora
    sft: SftSettings
    rm: RmSettings
    judge: RmSettings
    ppo: PpoSettings
    generate: GenerateSettings

    @model_validator(mode="after")
    def _hub_or_made(self) -> "Model":
        made = self.architecture is not None and self.base is not None
        if (self.hub is None) != made:
            raise ValueError(
                "either hub is an id and architecture and base are null,"
                f" or hub is null and both are given (hub: {self.hub})"
            )
        return self


class Params(Section):
    """The whole of params.yaml."""

    model: str
    seed: Annotated[int, Field(ge=0)]
    threads: Positive
    data: Data
    sample: Sample
    preprocess: Preprocess
    eda: Eda
    embedder: Embedder
    sft: Sft
    rm: Rm
    judge: Judge
    ppo: Ppo
    evaluate: Evaluate
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

    @property
    def chosen(self) -> Model:
        """The entry of `models` that `model` names."""
        return self.models[self.model]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises ValueError naming the file, the key, the value and what was expected.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run from the repository's root")
    try:
        raw = YAML(typ="safe", pure=True).load(path)
    except YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a mapping was expected, not {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(lines)) from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: no such key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r}: {message}"
