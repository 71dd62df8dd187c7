"""Random tiny models and all that stands on them, for the tests of the model side.

Different here: weights are drawn wide and EOS is made likely, so that answers end at different
steps and a wrong position, mask or adapter shows in the second digit, not in the eighth.
"""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from stages.rlhf.chat import Codec, prepare_tokenizer
from stages.rlhf.config.models import Lora
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_sft, save_card
from stages.rlhf.ppo.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.ppo.rollout import Rollout
from stages.rlhf.ppo.selection import Decide, Kept
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.ppo.validation import Validation
from stages.rlhf.precision import WEIGHTS
from stages.rlhf.reward.model import RewardModel, new_reward_model

torch.set_num_threads(1)  # tiny tensors: a second thread only costs
torch.use_deterministic_algorithms(True)  # as runtime.start does; bitwise claims rest on it

ROOT = Path(__file__).parents[1]
LORA = Lora(r=4, alpha=8)
SENTENCES = [
    "한라산의 높이는 1947m입니다.",
    "서울은 대한민국의 수도입니다.",
    "질문: 경주는 어느 도에 있나요?\n답변:\n경주는 경상북도에 있습니다.",
    "세종대왕은 훈민정음을 만들었습니다.",
]
QUESTIONS = [
    "한라산의 높이는?",
    "서울은 어느 나라의 수도인가요?",
    "경주는 어느 도에 있나요?",
    "훈민정음은 누가 만들었나요?",
    "제주도는?",
    "부산은 어떤 도시인지 자세히 설명해 주세요.",
    "독도는 어디에 있나요?",
    "김치는?",
]


@cache
def bpe(*special: str) -> Tokenizer:
    """A byte-level BPE of some 320 tokens; `special` have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def tiny_tokenizer() -> Any:
    """As stage base makes it: <pad>, <bos>, <eos>."""
    made = Tokenizer.from_str(bpe("<pad>", "<bos>", "<eos>").to_str())
    return prepare_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )
    )


LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>")


def llama3_tokenizer() -> Any:
    """A twin of Llama-3's: BOS put in by the post-processor, no padding token named."""
    made = Tokenizer.from_str(bpe(*LLAMA3_SPECIAL).to_str())
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=True,
    )


BYTES = tuple(f"<0x{i:02X}>" for i in range(256))


@cache
def sentencepiece(prefix: bool, *special: str) -> Tokenizer:
    """A BPE as SentencePiece's become in tokenizers: blanks are ▁, unknown characters are bytes.

    `prefix`: a blank is put before the text, as Llama-2 does and Gemma does not.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if prefix else []
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*special, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] not in BYTES]
    made = Tokenizer.from_str(json.dumps(plain))
    bos = "<s>" if "<s>" in special else "<bos>"
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
    )
    return made


def llama2_tokenizer() -> Any:
    """A twin of Llama-2's: SentencePiece with a blank before the text, no padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(sentencepiece(True, "<unk>", "<s>", "</s>").to_str()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def gemma_tokenizer() -> Any:
    """A twin of Gemma's: SentencePiece without a blank before the text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            sentencepiece(False, "<pad>", "<eos>", "<bos>", "<unk>").to_str()
        ),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def tiny_llama(
    vocab_size: int, seed: int = 0, dtype: torch.dtype = torch.float32, eos_id: int = 2
) -> Any:
    """Two layers of width 32, tied embeddings, frozen, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
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


def tiny_gemma2(vocab_size: int, eos_id: int = 2) -> Any:
    """Soft-capped attention and logits, and a window shorter than the prompts."""
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
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


def save_base(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A folder like data/base."""
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer), seed, dtype).save_pretrained(folder)
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


def save_sft(base: Path, folder: Path, method: str, dtype: torch.dtype = torch.float32) -> Path:
    """A folder like data/sft: another backbone, or an adapter on `base`."""
    if method == "full":
        save_base(folder, seed=1, dtype=dtype)
    else:
        roles = Roles(tiny_llama(len(tiny_tokenizer()), dtype=dtype), LORA)
        roles.add("sft")
        shake(roles, "sft", seed=1)
        roles.save("sft", folder)
    save_card(folder, "sft", {"base": base}, method=method)
    return folder


def sft_roles(folder: Path, method: str, dtype: str = "float32") -> Roles:
    """What `load_sft` gives for a random base and SFT model saved below `folder`."""
    base, sft = folder / "base", folder / "sft"
    if not base.is_dir():
        save_base(base, dtype=WEIGHTS[dtype])
        save_sft(base, sft, method, WEIGHTS[dtype])
    torch.manual_seed(0)
    return load_sft(base, sft, dtype, LORA)


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


@cache
def shipped() -> Params:
    """The repository's params.yaml, read once."""
    return load_params(ROOT / "params.yaml")


def ppo_knobs(**changed: Any) -> PpoConfig:
    """The `ppo` section of params.yaml with all that a test counts on fixed here."""
    fixed = {
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
        QUESTIONS,
        ppo or ppo_knobs(),
        settings or ppo_settings(),
        max_new_tokens,
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
