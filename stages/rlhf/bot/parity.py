"""An export, loaded as a stranger would by transformers alone, against the model it is of."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from stages.rlhf.bot.models import Bot
from stages.rlhf.chat import Codec
from stages.rlhf.decoding.tokens import cut_after
from stages.rlhf.korean import clean_line

TOLERANCE = 1e-3  # of a score, in standard deviations


def same_tokens(bot: Bot, name: str, folder: Path, questions: Sequence[str]) -> str:
    """Greedy tokens of the exported folder against those of the model in data/; what was found.

    Raises ValueError naming the first question and token at which they part.
    """
    prompts = [bot.prompt(question) for question in questions]
    ours = bot.greedy(name, prompts)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype="auto"
    ).eval()
    for question, prompt, expected in zip(questions, prompts, ours, strict=True):
        chat = [{"role": "user", "content": clean_line(question)}]
        encoded = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        if encoded["input_ids"][0].tolist() != prompt:
            raise ValueError(f"{question!r}: the exported tokenizer encodes it otherwise")
        with torch.no_grad():
            row = model.generate(**encoded)[0, len(prompt) :].tolist()
        found = cut_after(row, bot.codec.eos_id)
        if found != expected:
            raise ValueError(_parted(question, expected, found, bot.codec))
    tokens = sum(map(len, ours))
    return f"{len(prompts)} of {len(prompts)} answers equal, {tokens} tokens"


def _parted(question: str, expected: list[int], found: list[int], codec: Codec) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    ends = [ids[at : at + 1] for ids in (expected, found)]
    ours, its = (
        f"{codec.tokenizer.decode(ids)!r} (id {ids[0]})" if ids else "no more" for ids in ends
    )
    return (
        f"{question!r}: at token {at + 1} the model says {ours}, its export {its};"
        " nothing was written (--dtype float32 rounds least)"
    )


def same_scores(bot: Bot, folder: Path, questions: Sequence[str]) -> str:
    """Scores of SFT's greedy answers by an exported reward model against those by data/rm.

    The export leaves out a constant: the mean of SFT's answers. Raises ValueError naming the first
    question at which the rest differs by more than TOLERANCE.
    """
    assert bot.reward_model is not None, "the bot was opened without reward models"
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype="auto"
    ).eval()
    (member,) = bot.reward_model.members
    prompts = [bot.prompt(question) for question in questions]
    for question, prompt, answer in zip(
        questions, prompts, bot.greedy("sft", prompts), strict=True
    ):
        ended = answer if answer[-1:] == [bot.codec.eos_id] else [*answer, bot.codec.eos_id]
        with torch.no_grad():
            found = model(input_ids=torch.tensor([[*prompt, *ended]])).logits.item()
        expected = bot.reward_model.score([(prompt, [ended])], bot.codec).mean.item()
        expected += member.mean / member.sd
        if abs(found - expected) > TOLERANCE:
            raise ValueError(
                f"{question!r}: the reward model gives {expected:.4f}, its export {found:.4f};"
                " nothing was written (--dtype float32 rounds least)"
            )
    return f"{len(prompts)} of {len(prompts)} scores equal within {TOLERANCE} sd"
