"""data/ as a run leaves it, of random models: what the bot loads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaForCausalLM

from stages.rlhf.bot import export
from stages.rlhf.bot.models import Bot, BotParams
from stages.rlhf.config.base import load
from stages.rlhf.hub import write_pointer
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import load_base, load_sft, save_card
from stages.rlhf.records import SftRow, write_jsonl
from stages.rlhf.reward.model import new_reward_model
from tests.conftest import write_params
from tests.model_fixtures import (
    LORA,
    fake_hub,
    random_reward_model,
    save_base,
    shake,
    tiny_gemma2,
    tiny_llama,
)
from tests.tokenizer_fixtures import (
    QUESTIONS,
    gemma_tokenizer,
    kanana15_tokenizer,
    llama2_tokenizer,
    llama3_tokenizer,
    tiny_tokenizer,
)

Make = Callable[[int], Any]  # a model by its number of tokens
TRAINED_AT = 0.1  # size of a trained adapter's weights: some answers change, and not to noise


def write_run(
    folder: Path,
    patch: pytest.MonkeyPatch,
    method: str = "lora",
    head: str = "scalar",
    members: int = 1,
    twin: tuple[Any, Make] | None = None,
    dtype: str = "float32",
) -> Path:
    """params.yaml and data/ below `folder`, the current one from now on; returns data/.

    twin: tokenizer and model that come from a hub of our own; None: a base trained here.
    """
    patch.chdir(folder)
    changed: dict[str, Any] = {"model": "micro", "threads": 1, "models.micro.sft.method": method}
    changed["models.micro.dtype"] = dtype
    data = folder / "data"
    base, sft, rm = (data / name for name in ("base", "sft", "rm"))
    if twin is None:
        save_base(base)
    else:
        tokenizer, make = twin
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        fake_hub(folder / "cache", "org/twin", make(len(tokenizer)), tokenizer)
        write_pointer(base, "org/twin", None)
        changed |= dict.fromkeys(("models.micro.architecture", "models.micro.base"))
        changed |= {"models.micro.hub": "org/twin"}
    write_params(folder, **changed)
    if method == "full":
        save_base(sft, seed=1)
    else:
        first = load_base(base, dtype, LORA)
        first.add("sft")
        shake(first, "sft", 1, TRAINED_AT)
        first.save("sft", sft)
    save_card(sft, "sft", {"base": base}, method=method)
    parents = {"base": base, "sft": sft}
    roles = load_sft(base, sft, dtype, LORA)
    random_reward_model(roles, head, members).save(rm)
    save_card(rm, "reward", parents)
    roles.add(POLICY, like=roles.reference)
    shake(roles, POLICY, 5, TRAINED_AT)
    roles.save(POLICY, data / "ppo" / "best")
    save_card(data / "ppo" / "best", "ppo", {**parents, "rm": rm})
    new_reward_model(load_base(base, dtype, LORA), "scalar", 1, "j", kind="judge").save(
        data / "judge"
    )
    save_card(data / "judge", "judge", {"base": base})
    rows = [SftRow(id=str(i), question=q, answer="네.") for i, q in enumerate(QUESTIONS)]
    write_jsonl(data / "preprocess" / "sft" / "test.jsonl", rows)
    return data


def opened(data: Path, **more: Any) -> Bot:
    """The bot of `write_run`'s folder."""
    torch.manual_seed(0)
    return Bot(load(BotParams), data, **more)


def plain(vocab_size: int) -> Any:
    """A base model that comes from elsewhere."""
    return tiny_llama(vocab_size)


PLAIN_TWIN = tiny_tokenizer, plain


def wide_llama(vocab_size: int) -> Any:
    """As kanana-1.5: heads wider than their share of the hidden size, several to a key."""
    config = tiny_llama(vocab_size, eos_id=1).config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] *= 4
    return model.eval().requires_grad_(False)


TWINS: dict[str, tuple[Callable[[], Any], Make]] = {  # of the four families of models.yaml
    "llama3": (llama3_tokenizer, lambda size: tiny_llama(size, eos_id=1)),
    "kanana15": (kanana15_tokenizer, wide_llama),
    "gemma2": (gemma_tokenizer, lambda size: tiny_gemma2(size, eos_id=1)),
    "llama2": (llama2_tokenizer, lambda size: tiny_llama(size, eos_id=2)),
}


def exported(
    data: Path,
    out: Path,
    name: str = "ppo",
    dtype: str = "float32",
    questions: Sequence[str] = QUESTIONS,
) -> str:
    """A model of `write_run`, merged into a folder of its own; what the gate found."""
    bot = opened(data, names=(name,), scored=False)
    return export.in_draft(out, export.export_merged(bot, name, data, dtype, questions), "card")
