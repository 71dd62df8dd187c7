"""Decoding of 64 answers: ours against transformers' `generate`, greedy, the same tokens.

    python -m tests.benchmarks.decode_vs_generate BASE             # a folder with a base model
    python -m tests.benchmarks.decode_vs_generate BASE --rounds 1 --new 32

Prompts of 16 to 96 random tokens, bfloat16, two threads, sides in turn in one process. An answer
ends after a drawn number of tokens, of 16 to --new, in both sides alike: EOS is planted in the
logits there and nowhere else, all other tokens are the model's own. `generate` has its defaults and
all 64 rows in one batch.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.utils import logging

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding import generation, tokens
from stages.rlhf.model.store import load_causal_lm, load_tokenizer
from stages.rlhf.precision import device
from tests.benchmarks.device_memory import seconds_are_over
from tests.model_fixtures import random_ids

ROWS, SHORTEST, LONGEST = 64, 16, 96  # prompts, and their tokens


def ends_of(new: int) -> Tensor:
    """(ROWS,) the step at which each answer ends."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(16, new - 1), new, (ROWS,), generator=generator).to(device())


class Ends(LogitsProcessor):
    """EOS where an answer's step has come, and nowhere else."""

    def __init__(self, ends: Tensor, prompt: int, eos: int) -> None:
        self.ends, self.prompt, self.eos = ends, prompt, eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V)."""
        now = self.ends <= input_ids.shape[1] - self.prompt
        scores[:, self.eos] = torch.where(now, torch.inf, -torch.inf)
        return scores


def ours(model: Any, codec: Codec, prompts: list[list[int]], ends: Tensor, new: int) -> Any:
    """By stages' own decoding, in the order of the prompts; the uniforms say where a row ends."""
    pick = tokens.pick

    def planted(logits: Tensor, over: Tensor) -> Tensor:
        logits[:, codec.eos_id] = -torch.inf
        return logits.argmax(-1).masked_fill(over > 0, codec.eos_id)

    over = (torch.arange(new) >= ends.cpu()[:, None]).float()
    tokens.pick = planted
    try:
        scale = GenerationScale(batch_size=ROWS, engine="koqa")
        return generation.generate_all(model, prompts, codec, new, scale, 1.0, over)
    finally:
        tokens.pick = pick


@torch.no_grad()
def theirs(model: Any, codec: Codec, prompts: list[list[int]], ends: Tensor, new: int) -> Any:
    """By transformers, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[codec.pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    found = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
        logits_processor=[Ends(ends, width, codec.eos_id)],
    )
    return [tokens.cut_after(row, codec.eos_id) for row in found[:, width:].tolist()]


def main() -> None:
    """Print both sides' seconds and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=96, help="tokens of the longest answer")
    given = parser.parse_args()
    torch.set_num_threads(2)
    logging.set_verbosity_error()
    model = load_causal_lm(given.base, "bfloat16").eval()
    codec = Codec(load_tokenizer(given.base))
    prompts = random_ids(ROWS, SHORTEST, LONGEST, model.config.get_text_config().vocab_size, seed=0)
    ends = ends_of(given.new)
    spent: dict[str, list[float]] = {"generate": [], "ours": []}
    for _ in range(given.rounds):
        said = {}
        for side, decode in (("generate", theirs), ("ours", ours)):
            since = time.perf_counter()
            said[side] = decode(model, codec, prompts, ends, given.new)
            seconds_are_over()
            spent[side].append(time.perf_counter() - since)
        lengths = [[*map(len, answers)] for answers in said.values()]
        assert lengths[0] == lengths[1] == (ends + 1).tolist()
        same = sum(one == other for one, other in zip(*said.values(), strict=True))
        print({side: round(s[-1], 2) for side, s in spent.items()}, f"s; {same} of {ROWS} equal")
    middle = {side: statistics.median(seconds) for side, seconds in spent.items()}
    tokens = int((ends + 1).sum())
    for side, seconds in middle.items():
        print(f"{side:8s}: {tokens / seconds:.1f} tokens a second")
    print(f"ours: {middle['generate'] / middle['ours']:.2f} times the tokens of generate")


if __name__ == "__main__":
    main()
