"""The two sides of ppo_vs_trl: one set of weights, prompts and knobs, in our trainer and in TRL's.

TRL 1.12.0 is the last with a PPOTrainer; it must lie in build/trl112 (see ppo_vs_trl). Nothing of
it is transcribed or sped up: `PPOTrainer.train` runs as it is, and the helpers that it calls at
known places are wrapped to read the clock and the calling frame.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Lora
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.model.lora import LoraLinear
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.model.sequences import collate
from stages.rlhf.model.store import load_sft, load_tokenizer
from stages.rlhf.ppo.rollout import Prompt
from stages.rlhf.ppo.stats import rollout_stats
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.precision import WEIGHTS, device
from stages.rlhf.records import PromptRow, read_rows
from stages.rlhf.reward.model import Head, Member, RewardModel, load_reward_model, member_name
from tests.benchmarks.device_memory import seconds_are_over
from tests.conftest import ROOT

PEER = ROOT / "build" / "trl112"
INSTALL = "pip install --no-deps --target build/trl112 trl==1.12.0"
RATE, KL_COEF, TEMPERATURE, EOS_PENALTY = 5e-4, 0.05, 0.7, 1.0
LIMITLESS = 1e9  # a limit that nothing reaches
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Setting:
    """What both sides are asked to do; `vocab` 0 is the sample's SFT and reward model."""

    batch: int
    response: int
    epochs: int
    ends: bool = False  # whether EOS ends an answer
    vocab: int = 0
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    head: int = 32  # width of one
    kv_heads: int | None = None  # None: as many as heads
    prompt: tuple[int, int] = (6, 16)  # tokens, at least and at most
    dtype: str = "float32"

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return self.hidden // self.head


SETTINGS = {
    "real": Setting(batch=128, response=48, epochs=2, ends=True),
    "eos_off_32": Setting(batch=32, response=32, epochs=2, vocab=2000),
    "eos_off_64": Setting(batch=64, response=64, epochs=4, vocab=2000),
    "wide": Setting(32, 32, 2, vocab=64_000, hidden=256),
    "widest": Setting(32, 32, 2, vocab=262_144, hidden=256),
    "llama-1b": Setting(  # Llama-3.2-1B's architecture, for a GPU
        batch=64,
        response=256,
        epochs=4,
        vocab=128_256,
        hidden=2048,
        intermediate=8192,
        layers=16,
        head=64,
        kv_heads=8,
        prompt=(128, 128),
        dtype="bfloat16",
    ),
}


class PlainCodec(Codec):
    """Questions that are ids already, in words; no token ends an answer."""

    @property
    def eos_id(self) -> int:
        """No id of the vocabulary."""
        return len(self.tokenizer)

    def prompt_ids(self, question: str) -> list[int]:
        """The ids that the words are."""
        return [int(word) for word in question.split()]


@dataclass
class Material:
    """What each side makes its own copies of."""

    codec: Codec
    questions: list[str]
    backbone: Any  # the SFT model, frozen
    lora: Lora
    reward_state: dict[str, Tensor] | None  # of the reward model's adapter; None: a new one
    reward_weight: Tensor  # (1, H) of its linear head


def plain_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A word for every id; 0 pads, 1 is called EOS."""
    words = {"<pad>": 0, "<eos>": 1, **{str(i): i for i in range(2, vocab)}}
    made = Tokenizer(models.WordLevel(words, unk_token="2"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def llama_config(setting: Setting) -> LlamaConfig:
    """The setting's shape, with room for its rows, and for a few hundred tokens in any case."""
    return LlamaConfig(
        vocab_size=setting.vocab,
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads or setting.heads,
        max_position_embeddings=max(256, setting.prompt[1] + setting.response),
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def random_material(setting: Setting) -> Material:
    """A random Llama, and prompts of random tokens."""
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(llama_config(setting)).eval().requires_grad_(False)
    least, most = setting.prompt
    lengths = torch.randint(least, most + 1, (64 * setting.batch,)).tolist()
    prompts = [torch.randint(2, setting.vocab, (n,)).tolist() for n in lengths]
    weight = torch.randn(1, setting.hidden) / setting.hidden**0.5
    return Material(
        PlainCodec(plain_tokenizer(setting.vocab)),
        [" ".join(map(str, prompt)) for prompt in prompts],
        backbone.to(device(), WEIGHTS[setting.dtype]),
        Lora(r=16, alpha=32),
        None,
        weight.to(device()),
    )


def sample_material(params: Params) -> Material:
    """The default run's SFT model, training prompts, and the linear part of its reward model."""
    roles = load_sft(ROOT / "data/base", ROOT / "data/sft", "float32", params.base_model.lora)
    if roles.reference is not None:
        raise ValueError("data/sft is an adapter; the benchmark takes a model trained in full")
    member = load_reward_model(roles, ROOT / "data/rm").members[0]
    rows = read_rows(ROOT / "data/preprocess/ppo/train.jsonl", PromptRow)
    state = roles.state(member.name)
    return Material(
        Codec(load_tokenizer(ROOT / "data/base")),
        [row.question for row in rows],
        roles.model.unload(),
        params.base_model.lora,
        state,
        member.head.value.weight.detach().clone() / member.sd,
    )


def material(setting: Setting) -> Material:
    """The same bits in every process."""
    return random_material(setting) if setting.vocab else sample_material(load_params())


def knobs(params: Params, setting: Setting) -> Any:
    """Section `ppo` with what TRL has no twin of switched off."""
    fixed = {
        "advantage": "gae",
        "answers_per_prompt": 1,
        "kl_coef": KL_COEF,
        "epochs": setting.epochs,
        "temperature": TEMPERATURE,
        "missing_eos_penalty": EOS_PENALTY,
        "repetition_penalty": 0.0,
        "copy_penalty": 0.0,
        "score_clip": LIMITLESS,
        "uncertainty_coef": 0.0,
        "value_warmup": 0,
        "stop_kl_batch": LIMITLESS,
        "stop_kl_run": LIMITLESS,
        "kl_target": None,
    }
    return params.ppo.model_copy(update=fixed)


def reward_roles(made: Material) -> RewardModel:
    """One member with a scalar head on a backbone of its own, on the score's own scale."""
    roles = Roles(deepcopy(made.backbone), made.lora)
    name = member_name(0)
    roles.add(name)
    if made.reward_state is not None:
        roles.load_state(name, made.reward_state)
    head = Head(roles.model.config.hidden_size, hybrid=False).to(roles.model.device)
    with torch.no_grad():
        head.value.weight.copy_(made.reward_weight)
    return RewardModel(roles, [Member(name, head.eval().requires_grad_(False))])


class Ours:
    """`PpoTrainer` as stage ppo runs it, update by update."""

    def __init__(self, made: Material, setting: Setting, micro_batch_tokens: int) -> None:
        params = load_params()
        settings = {
            "batch_size": setting.batch,
            "minibatches": 1,  # TRL takes one step an epoch
            "micro_batch_tokens": micro_batch_tokens,
            "learning_rate": RATE,
            "value_learning_rate": RATE,
            "corpus_check": 0.0,
        }
        self.start(
            made,
            reward_roles(made),
            knobs(params, setting),
            params.base_model.ppo.model_copy(update=settings),
            setting.response,
        )

    def start(
        self, made: Material, reward_model: RewardModel, ppo: Any, settings: Any, response: int
    ) -> None:
        """Make the trainer."""
        self.codec = made.codec
        self.trainer = PpoTrainer(
            reward_model.roles,
            reward_model,
            made.codec,
            [PromptRow(id=str(i), question=text) for i, text in enumerate(made.questions)],
            ppo,
            settings,
            response,
            load_params().base_model.generate,
            seed=0,
            work=ROOT / ".work" / "benchmark",
        )
        self.done = 0  # the last update; from the first on the policy learns

    def update(self, prompts: list[list[int]]) -> dict[str, float]:
        """The next update, on these prompts; its seconds by phase, tokens, score and KL."""
        self.done += 1
        seconds_are_over()
        trainer, begin = self.trainer, time.perf_counter()
        trainer.clock.lap("else")
        before = dict(trainer.clock.seconds)
        asked = [Prompt(self.codec.text(ids), ids) for ids in prompts]
        rollout = trainer.rollout(self.done, asked)
        trainer.learn(self.done, rollout)
        seconds_are_over()
        trainer.clock.lap("update")
        spent = {
            f"{phase}_s": trainer.clock.seconds[phase] - before.get(phase, 0.0)
            for phase in ("generate", "score", "update")
        }
        row = rollout_stats(rollout, trainer.progress.kl_coef)
        figures = {"score": row["score"], "kl": row["kl"]}
        tokens = float(rollout.sequences.sizes[:, 1].sum())
        return {"seconds": time.perf_counter() - begin, **spent, "tokens": tokens, **figures}

    @torch.no_grad()
    def against(self, seen: dict[str, Any]) -> dict[str, float]:
        """Largest differences from TRL's first rollout, before either side has learned.

        Raises ValueError where the two do not train the same thing.
        """
        trainer, codec = self.trainer, self.codec
        roles, mask = trainer.roles, ~seen["padding_mask"]
        prompts = [unpadded(row, codec.pad_id) for row in seen["queries"].tolist()]
        sizes = mask.sum(-1).tolist()
        answers = [row[:n] for row, n in zip(seen["responses"].tolist(), sizes, strict=True)]
        rows = collate(prompts, answers, codec.pad_id, roles.model.device)
        with roles.use(POLICY):
            logprobs = trainer.model.logprobs(rows)
        with roles.use(VALUE):
            values = trainer.model.values(rows)
        questions = [(p, [a]) for p, a in zip(prompts, answers, strict=True)]
        scores = trainer.reward_model.score(questions, codec).mean
        penalty = EOS_PENALTY * (~seen["contain_eos_token"]).float()
        own, longest = rows.response_mask, rows.response.shape[1]

        def off(ours: Tensor, theirs: Tensor) -> float:
            return float((ours - theirs[:, :longest])[own].abs().max())

        found = {
            "logprobs": off(logprobs, seen["ref_logprobs"]),
            "values": off(values, seen["values"]),
            "scores": float((scores - seen["scores"] - penalty).abs().max()),
        }
        if max(found.values()) > (1e-3 if roles.model.dtype == torch.float32 else 0.3):
            raise ValueError(f"the two sides do not train the same thing: {found}")
        return found


class Shipped(Ours):
    """The default run's own trainer, with GAE and no corpus check, which TRL has not."""

    def __init__(self, made: Material) -> None:
        params = load_params()
        base_model = params.base_model
        folders = ROOT / "data/base", ROOT / "data/sft"
        roles = load_sft(*folders, base_model.dtype, base_model.lora)
        reward_model = load_reward_model(roles, ROOT / "data/rm")
        ppo = params.ppo.model_copy(update={"advantage": "gae", "answers_per_prompt": 1})
        settings = base_model.ppo.model_copy(update={"corpus_check": 0.0})
        self.start(made, reward_model, ppo, settings, base_model.max_answer_tokens)


def unpadded(ids: list[int], pad_id: int) -> list[int]:
    """A prompt without the padding at its left."""
    return ids[next(i for i, token in enumerate(ids) if token != pad_id) :]


def peer() -> Any:
    """Module trl.experimental.ppo.ppo_trainer of TRL 1.12.0. Exits where it is not installed."""
    if not (PEER / "trl").is_dir():
        raise SystemExit(f"TRL 1.12.0 is not there; put it beside the project's own: {INSTALL}")
    if str(PEER) not in sys.path:
        sys.path.insert(0, str(PEER))
    import trl
    from trl.experimental.ppo import ppo_trainer

    if trl.__version__ != "1.12.0":
        raise SystemExit(f"{trl.__file__} is TRL {trl.__version__}; 1.12.0 expected: {INSTALL}")
    return ppo_trainer


@dataclass
class Probe:
    """What is seen of TRL's updates, one at a time."""

    shipped: bool = True  # whether gc.collect and empty_cache do their work
    asked: list[list[list[int]]] = field(default_factory=list)  # prompts of each batch, as fetched
    rows: list[dict[str, float]] = field(default_factory=list)
    first: dict[str, Any] = field(default_factory=dict)  # tensors of the first rollout
    since: float = 0.0
    _now: dict[str, float] = field(default_factory=dict)

    def ends(self) -> dict[str, float]:
        """The update that has just ended."""
        seconds_are_over()
        now = time.perf_counter()
        row = {
            "seconds": now - self.since,
            "generate_s": self._now["generate_s"],
            "score_s": self._now["scored"] - self.since - self._now["generate_s"],
            "update_s": now - self._now["scored"],
            **{key: self._now[key] for key in ("tokens", "score", "kl")},
        }
        self.rows.append(row)
        return row

    def reads(self, seen: dict[str, Any]) -> None:
        """Rewards and advantages are there: keep what they were made of."""
        mask = ~seen["padding_mask"]
        kl = torch.where(mask, seen["logprobs"] - seen["ref_logprobs"], 0).sum(-1)
        penalty = EOS_PENALTY * (~seen["contain_eos_token"]).float()
        self._now["tokens"] = float(mask.sum())
        self._now["kl"] = float(kl.mean())
        self._now["score"] = float((seen["scores"] + penalty).mean())
        if not self.first:
            names = ("queries", "responses", "ref_logprobs", "values", "scores", "padding_mask")
            self.first = {name: seen[name].clone() for name in (*names, "contain_eos_token")}
        seconds_are_over()
        self._now["scored"] = time.perf_counter()


@contextmanager
def watched(module: Any, probe: Probe, score: Callable[..., Any] | None) -> Iterator[None]:
    """TRL's helpers, wrapped; `score` takes the place of its reward model."""
    names = ("batch_generation", "masked_whiten", "get_reward", "empty_cache", "gc")
    kept = {name: getattr(module, name) for name in names}

    def batch_generation(*given: Any, **more: Any) -> Any:
        seconds_are_over()
        begin = time.perf_counter()
        made = kept["batch_generation"](*given, **more)
        seconds_are_over()
        probe._now["generate_s"] = time.perf_counter() - begin
        return made

    def masked_whiten(*given: Any, **more: Any) -> Any:
        whitened = kept["masked_whiten"](*given, **more)
        probe.reads(sys._getframe(1).f_locals)
        return whitened

    def get_reward(model: Any, *given: Any) -> Any:
        asked_for = score is not None and model is sys._getframe(1).f_locals["reward_model"]
        return score(*given) if asked_for and score else kept["get_reward"](model, *given)

    module.batch_generation, module.masked_whiten = batch_generation, masked_whiten
    module.get_reward = get_reward
    module.empty_cache = lambda: kept["empty_cache"]() if probe.shipped else None
    module.gc = SimpleNamespace(collect=lambda: gc.collect() if probe.shipped else 0)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


class AfterUpdate(TrainerCallback):
    """Calls back at the end of each update; what that takes is not counted."""

    def __init__(self, probe: Probe, then: Callable[[dict[str, float]], None]) -> None:
        self.probe, self.then = probe, then

    def on_step_end(self, *args: Any, **more: Any) -> None:
        self.then(self.probe.ends())
        self.probe.since = time.perf_counter()


def trl_models(made: Material) -> tuple[Any, Any, Any]:
    """Policy, reward and value model with our weights."""
    policy = deepcopy(made.backbone).requires_grad_(True)
    reward = reward_roles(made)
    merged = reward.roles.model
    merged.set_adapter(member_name(0))
    with torch.no_grad():
        for layer in merged.modules():
            if isinstance(layer, LoraLinear):
                layer.merge(member_name(0))
                layer.get_base_layer().weight.copy_(layer.merged)
    merged = merged.unload()
    config = deepcopy(merged.config)
    config.num_labels = 1
    scorer = LlamaForSequenceClassification(config).to(merged.device, merged.dtype)
    scorer.model.load_state_dict(merged.model.state_dict())
    with torch.no_grad():
        scorer.score.weight.copy_(made.reward_weight)
    return policy, scorer.requires_grad_(False), deepcopy(scorer).requires_grad_(True)


def train_trl(
    made: Material,
    setting: Setting,
    micro_batch: int,
    lora: bool,
    updates: int,
    folder: str,
    then: Callable[[dict[str, float]], None],
    probe: Probe,
    score: Callable[..., Any] | None = None,
    kl_coef: float = KL_COEF,
) -> None:
    """Run TRL's trainer, no slower than it need be: no checkpoints, no recomputing."""
    module = peer()
    policy, reward, value = trl_models(made)
    tokenizer = deepcopy(made.codec.tokenizer)
    tokenizer.padding_side = "left"
    args = module.PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=setting.batch // micro_batch,
        total_episodes=setting.batch * updates,
        num_ppo_epochs=setting.epochs,
        response_length=setting.response,
        stop_token="eos" if setting.ends else None,
        temperature=TEMPERATURE,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        kl_coef=kl_coef,
        missing_eos_penalty=EOS_PENALTY,
        local_rollout_forward_batch_size=setting.batch,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=setting.dtype == "bfloat16",
        use_cpu=device() == "cpu",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    linear = LoraConfig(r=made.lora.r, lora_alpha=made.lora.alpha, target_modules=LORA_LAYERS)

    def collate_rows(rows: list[dict[str, list[int]]]) -> Any:
        asked = [row["input_ids"] for row in rows]
        probe.asked.append(asked)
        return tokenizer.pad({"input_ids": asked}, return_tensors="pt")

    prompts = [made.codec.prompt_ids(question) for question in made.questions]
    trainer = module.PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None if lora else deepcopy(made.backbone),
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        data_collator=collate_rows,
        peft_config=linear if lora else None,
        callbacks=[AfterUpdate(probe, then)],
    )
    trainer.remove_callback(module.PrinterCallback)
    with watched(module, probe, score):
        probe.since = time.perf_counter()
        trainer.train()


def our_score(reward_model: RewardModel, codec: Codec) -> Callable[..., Any]:
    """Our reward model, called as TRL calls its own."""

    def score(ids: Tensor, pad_id: int, context: int) -> tuple[None, Tensor, None]:
        questions, answers = [], []
        for row in ids.tolist():
            answer = row[context:]
            answers.append(answer[: answer.index(pad_id)] if pad_id in answer else answer)
            questions.append((unpadded(row[:context], pad_id), [answers[-1]]))
        return None, reward_model.corrected_scores(questions, codec), None

    return score
