"""Random tiny models and all that stands on them, for the tests of the model side.

Different here: weights are drawn wide and EOS is made likely, so that answers end at different
steps and a wrong position, mask or adapter shows in the second digit, not in the eighth.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Architecture, GenerationScale, Lora
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.hub import write_pointer
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_sft, save_card
from stages.rlhf.ppo.rollout import Rollout
from stages.rlhf.ppo.selection import Decide, Kept
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.ppo.validation import Validation
from stages.rlhf.precision import NF4, WEIGHTS
from stages.rlhf.records import PromptRow
from stages.rlhf.reward.model import RewardModel, new_reward_model
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from tests.conftest import ROOT
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

torch.set_num_threads(1)  # tiny tensors: a second thread only costs
# as runtime.start does; bitwise claims rest on it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())

# how SFT was trained, and the dtype: the kinds of backbone that PPO meets
KINDS = [("full", "float32"), ("lora", "float32"), ("lora", "bfloat16"), ("full", "mixed")]
LORA = Lora(r=4, alpha=8)
ARCHITECTURE = Architecture(vocab_size=300, hidden_size=16, intermediate_size=32, layers=1, heads=2)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_llama(
    vocab_size: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    eos_id: int = 2,
    width: int = 32,
) -> Any:
    """Two layers, tied embeddings, frozen, in eval mode. 4-bit weights need a width of 64."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=eos_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[eos_id] *= 4
    return model.to(dtype).eval().requires_grad_(False)


def tiny_gemma2(vocab_size: int, eos_id: int = 2, width: int = 32) -> Any:
    """Soft-capped attention and logits, and a window shorter than the prompts."""
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        sliding_window=6,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=eos_id,
    )
    model = Gemma2ForCausalLM(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
        model.get_input_embeddings().weight[eos_id] *= 2.5
    return model.eval().requires_grad_(False)


def ids_codec(pad_id: int = 0, eos_id: int = 2) -> Codec:
    """A codec for tests that start from ids and need no text."""
    return Codec(SimpleNamespace(pad_token_id=pad_id, eos_token_id=eos_id))


def at_once(rows: int, engine: Literal["koqa", "transformers"] = "koqa") -> GenerationScale:
    """So many rows at once, by this engine."""
    return GenerationScale(batch_size=rows, engine=engine)


def random_ids(count: int, shortest: int, longest: int, vocab_size: int, seed: int) -> list[Any]:
    """`count` rows of ids above 2, of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def shake(roles: Roles, name: str, seed: int, size: float = 0.3) -> None:
    """Give an adapter random tensors, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    state = roles.state(name)
    roles.load_state(
        name, {k: size * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    )


def save_base(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 32
) -> Path:
    """A folder like data/base."""
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer), seed, dtype, width=width).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fake_hub(cache: Path, name: str, model: Any = None, tokenizer: Any = None) -> Path:
    """A snapshot of a model in a hub cache of one's own; its folder."""
    tokenizer = tokenizer or tiny_tokenizer()
    folder = cache / f"models--{name.replace('/', '--')}"
    sha = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder / "snapshots" / sha
    (model or tiny_llama(len(tokenizer))).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(sha)
    return snapshot


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def pointed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any = None
) -> tuple[Path, Path]:
    """The cached snapshot of a fake hub model, and a folder with a pointer to it."""
    snapshot = fake_hub(tmp_path / "cache", "org/name", model)
    offline(monkeypatch, tmp_path / "cache")
    write_pointer(tmp_path / "base", "org/name", None)
    return snapshot, tmp_path / "base"


def save_sft(
    base: Path, folder: Path, method: str, dtype: torch.dtype = torch.float32, width: int = 32
) -> Path:
    """A folder like data/sft: another backbone, or an adapter on `base`."""
    if method == "full":
        save_base(folder, seed=1, dtype=dtype, width=width)
    else:
        roles = Roles(tiny_llama(len(tiny_tokenizer()), dtype=dtype, width=width), LORA)
        roles.add("sft")
        shake(roles, "sft", seed=1)
        roles.save("sft", folder)
    save_card(folder, "sft", {"base": base}, method=method)
    return folder


def sft_roles(folder: Path, method: str, dtype: str = "float32") -> Roles:
    """What `load_sft` gives for a random base and SFT model saved below `folder`."""
    base, sft = save_models(folder, method, dtype)
    torch.manual_seed(0)
    return load_sft(base, sft, dtype, LORA)


def save_models(folder: Path, method: str, dtype: str = "float32") -> tuple[Path, Path]:
    """Folders like data/base and data/sft, written unless they are there."""
    base, sft = folder / "base", folder / "sft"
    if not base.is_dir():
        form = {"dtype": WEIGHTS[dtype], "width": 64 if dtype == NF4 else 32}
        save_base(base, **form)
        save_sft(base, sft, method, **form)
    return base, sft


def random_reward_model(roles: Roles, head: str = "hybrid", members: int = 2) -> RewardModel:
    """A reward model with random adapters, each on some scale of its own."""
    model = new_reward_model(roles, head, members, "random")
    for i, member in enumerate(model.members):
        shake(roles, member.name, seed=3 + i)
        member.head.eval().requires_grad_(False)
        member.mean, member.sd = -9.0 + i, 2.5 + i
    return model


def next_to_no_scores(model: RewardModel) -> None:
    """Put the members on a scale on which every score is next to nothing."""
    for member in model.members:
        member.mean, member.sd = 0.0, 1e6


class Recorder(torch.optim.SGD):
    """Keeps the gradients of a step, and takes none."""

    def step(self, closure: Any = None) -> None:
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The keys under which two results, of tensors and plain values, are not bitwise the same."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.equal(a, b)
        return type(a) is type(b) and bool(a == b)

    return [key for key in one.keys() | two.keys() if not same(one.get(key), two.get(key))]


@cache
def shipped() -> Params:
    """The repository's params.yaml, read once."""
    return load_params(ROOT / "params.yaml")


def micro_params(**entry: Any) -> Params:
    """The repository's params with model micro alone, its entry in `models` changed."""
    changed = shipped().models["micro"].model_copy(update=entry)
    return shipped().model_copy(update={"model": "micro", "models": {"micro": changed}})


def ppo_knobs(**changed: Any) -> PpoConfig:
    """The `ppo` section of params.yaml with all that a test counts on fixed here."""
    fixed = {
        "advantage": "gae",
        "answers_per_prompt": 1,
        "kl_coef": 0.1,
        "kl_target": None,
        "kl_horizon": 100,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "epochs": 2,
        "temperature": 1.0,
        "missing_eos_penalty": 1.0,
        "repetition_penalty": 0.0,
        "copy_penalty": 0.0,
        "score_clip": 5.0,
        "uncertainty_coef": 0.1,
        "value_warmup": 0,
        "max_grad_norm": 1.0,
        "stop_kl_batch": 100.0,
        "stop_kl_run": 1000.0,
        "evaluate_every": 1,
        "patience": 100,
        "processes": 1,
    }
    return shipped().ppo.model_copy(update={**fixed, **changed})


def ppo_settings(**changed: Any) -> PpoScale:
    """16 responses, 2 minibatches, micro-batches of 60 tokens, unless a test says otherwise."""
    fixed = {
        "updates": 2,
        "batch_size": 16,
        "minibatches": 2,
        "micro_batch_tokens": 60,
        "learning_rate": 1e-3,
        "value_learning_rate": 2e-3,
        "corpus_check": 0.0,
    }
    return PpoScale(**{**fixed, **changed})


@cache
def _scored_roles(method: str, dtype: str, head: str) -> RewardModel:
    with TemporaryDirectory() as folder:
        return random_reward_model(sft_roles(Path(folder), method, dtype), head)


def ppo_trainer(
    folder: Path,
    method: str = "full",
    dtype: str = "float32",
    ppo: PpoConfig | None = None,
    settings: PpoScale | None = None,
    max_new_tokens: int = 8,
    decoded_at_once: int = 64,
    head: str = "hybrid",
    process_group: ProcessGroup = SINGLE_PROCESS,
    seed: int = 0,
) -> PpoTrainer:
    """A PPO trainer with all its roles, the same bits at each call; it works below `folder`."""
    reward_model = deepcopy(_scored_roles(method, dtype, head))
    codec = Codec(tiny_tokenizer())
    torch.manual_seed(0)
    return PpoTrainer(
        reward_model.roles,
        reward_model,
        codec,
        [PromptRow(id=str(i), question=question) for i, question in enumerate(QUESTIONS)],
        ppo or ppo_knobs(),
        settings or ppo_settings(),
        max_new_tokens,
        at_once(decoded_at_once),
        seed=seed,
        work=folder / "work",
        process_group=process_group,
    )


def sampled(trainer: PpoTrainer, update: int = 1) -> Rollout:
    """A rollout of 16 responses, two to each question."""
    return trainer.rollout(update, [trainer.prompts[i % len(trainer.prompts)] for i in range(16)])


def no_validation() -> Validation:
    """Greedy answers that nobody looks at."""
    return Validation({"chrf": 0.0}, [])


def keep(*updates: int) -> Decide:
    """Each of these updates is better than all before it."""

    def decide(rows: list[dict[str, float]]) -> Kept:
        return Kept(max(int(row["update"]) for row in rows if row["update"] in updates), "a test")

    return decide
