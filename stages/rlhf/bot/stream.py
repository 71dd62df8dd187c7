"""Decoding one answer token by token, for a reader who waits: ids, and text as it becomes whole."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from stages.rlhf.chat import Codec
from stages.rlhf.model.generation import pick
from stages.rlhf.model.sequences import decoder_of, next_logits

_PARTIAL = "\ufffd"  # what the bytes of an unfinished character decode to


def token_ids(
    model: Any,
    prompt: list[int],
    codec: Codec,
    max_new_tokens: int,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
) -> Iterator[int]:
    """The ids that `generation.generate` gives for this prompt alone, as they are chosen.

    `temperature` 0 is greedy; else `uniforms` (1, max_new_tokens) decide.
    """
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt], device=model.device)
    positions = torch.arange(len(prompt), device=model.device)[None]
    for step in range(max_new_tokens):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            states = decoder_of(model)(
                input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            logits = next_logits(model, states[:, -1], temperature or 1.0)
            if uniforms is None:
                chosen = logits.argmax(-1)
            else:
                chosen = pick(logits, uniforms[:, step].to(model.device))
        yield int(chosen)
        if int(chosen) == codec.eos_id:
            return
        ids, positions = chosen[:, None], positions[:, -1:] + 1


def text_pieces(ids: Iterable[int], codec: Codec) -> Iterator[str]:
    """Pieces of text that together are `codec.text` of all ids; no character is given in half."""
    seen: list[int] = []
    shown = text = ""
    for one in ids:
        seen.append(one)
        text = codec.text(seen)
        whole = text.rstrip(_PARTIAL)
        if whole.startswith(shown) and len(whole) > len(shown):
            yield whole[len(shown) :]
            shown = whole
    if text != shown:
        yield text[len(shown) :]
