"""A trained model as a folder that other tools load: merged, or as an adapter for peft.

A merge is made in float32 and cast last. Before a folder gets its name, it is loaded by
transformers alone and must give what the model of data/ gives (`parity.py`).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, GenerationConfig

from stages.rlhf import tensors
from stages.rlhf.bot.merge import (
    ADAPTER,
    CONFIG,
    adapter_of,
    as_trained,
    backbone_of,
    merge,
    merged,
)
from stages.rlhf.bot.models import Bot, folder_of
from stages.rlhf.bot.parity import same_scores, same_tokens
from stages.rlhf.bot.served import same_answers
from stages.rlhf.chat import Codec
from stages.rlhf.hub import POINTER
from stages.rlhf.precision import WEIGHTS

Write = Callable[[Path], str]  # fills a folder, holds it against the original, says so


def in_draft(out: Path, write: Write, readme: str) -> str:
    """Write a folder under a name of its own, and give it its name when all is well.

    Raises ValueError where `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out}: exists; expected the name of a new folder")
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        found = write(draft)
        (draft / "README.md").write_text(readme, encoding="utf-8")
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return found


def write_model(model: Any, codec: Codec, dtype: str, max_new_tokens: int, folder: Path) -> None:
    """Weights cast to `dtype`, config, tokenizer, generation settings."""
    model = model.to(WEIGHTS[dtype])
    model.generation_config = GenerationConfig(
        bos_token_id=codec.tokenizer.bos_token_id,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    model.config.bos_token_id = codec.tokenizer.bos_token_id
    model.config.eos_token_id, model.config.pad_token_id = codec.eos_id, codec.pad_id
    model.save_pretrained(folder)
    write_tokenizer(codec, folder)


def write_tokenizer(codec: Codec, folder: Path) -> None:
    """The tokenizer with the chat template, and SentencePiece's own file if its model has one.

    transformers 5 leaves that file out; llama.cpp's converter wants it for Gemma 2.
    """
    codec.tokenizer.save_pretrained(folder)
    pieces = Path(codec.tokenizer.name_or_path) / "tokenizer.model"
    if pieces.is_file():
        shutil.copyfile(pieces, folder / pieces.name)


def export_merged(
    bot: Bot, name: str, data: Path, dtype: str, questions: Sequence[str], served: bool = False
) -> Write:
    """A writer for `in_draft`: the merged model, held against the original, and as it is served."""

    def write(draft: Path) -> str:
        model = merged(name, data, bot.entry.dtype)
        write_model(model, bot.codec, dtype, bot.entry.max_answer_tokens, draft)
        found = same_tokens(bot, name, draft, questions)
        return f"{found}; {same_answers(bot, name, draft, questions)}" if served else found

    return write


def export_adapter(bot: Bot, name: str, data: Path) -> Write:
    """A writer for `in_draft`: the adapter with the hub id and revision of its base model.

    Raises ValueError where the model is no adapter on a model of the hub.
    """
    adapter = adapter_of(name, data)
    pointer = folder_of("base", data) / POINTER
    found = json.loads(pointer.read_text(encoding="utf-8")) if pointer.is_file() else {}
    if adapter is None or backbone_of(name, data) != folder_of("base", data) or "hub" not in found:
        raise ValueError(
            f"{name} is no adapter on a model of the hub, which peft could load it onto;"
            " export it merged, without --adapter"
        )

    def write(draft: Path) -> str:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": found["hub"], "revision": found["revision"]}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (draft / CONFIG).write_text(text, encoding="utf-8")
        shutil.copyfile(adapter / ADAPTER, draft / ADAPTER)
        write_tokenizer(bot.codec, draft)
        return "the adapter as it is in data/"

    return write


def export_reward(bot: Bot, data: Path, dtype: str, questions: Sequence[str]) -> Write:
    """A writer for `in_draft`: a scalar reward model as a sequence classifier of one label.

    Its score is w h / sd of the last token, EOS; ours subtracts the mean of SFT's answers, too.
    Raises ValueError for an ensemble and for the hybrid head, which no such class can hold.
    """
    folder = folder_of("rm", data)
    file = folder / "reward.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; no reward model here")
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved["hybrid"]:
        raise ValueError(
            "rm.head is hybrid: it reads the answer's log-probabilities, which no class of"
            " transformers does; train with rm.head=scalar to export a reward model"
        )
    if len(saved["members"]) != 1:
        raise ValueError(
            f"rm has {len(saved['members'])} members, and an export holds one: rm.members=1"
        )
    (member, scale), *_ = saved["members"].items()

    def write(draft: Path) -> str:
        causal = as_trained(backbone_of("sft", data), bot.entry.dtype)
        merge(causal, folder / member)
        causal.config.num_labels, causal.config.pad_token_id = 1, bot.codec.pad_id
        model = AutoModelForSequenceClassification.from_config(causal.config)
        model.base_model.load_state_dict(causal.base_model.state_dict())
        head = tensors.read(folder / member / "head.safetensors")["value.weight"]
        with torch.no_grad():
            model.score.weight.copy_(head.float() / scale["sd"])
        model.to(WEIGHTS[dtype]).save_pretrained(draft)
        write_tokenizer(bot.codec, draft)
        return same_scores(bot, draft, questions)

    return write
