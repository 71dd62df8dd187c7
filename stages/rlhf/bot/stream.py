"""Decoding for readers who wait: ids step by step, and text as it becomes whole."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.tokens import COMPACT_SHARE, choose, pad_left
from stages.rlhf.model.sequences import decoder_of, next_logits

_PARTIAL = "\ufffd"  # what the bytes of an unfinished character decode to


def token_ids(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
) -> Generator[dict[int, int]]:
    """The ids that `generation.generate` gives, as they are chosen: {index of the prompt: id}.

    A response that has ended is in no later step. `temperature` 0 is greedy; else `uniforms`
    (B, max_new_tokens) decide.
    """
    ids, mask, positions = pad_left(prompts, codec.pad_id, model.device)
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(prompts))  # row of the cache -> response
    done = torch.zeros(len(prompts), dtype=torch.bool)
    for step in range(max_new_tokens):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            states = decoder_of(model)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = next_logits(model, states[:, -1], temperature or 1.0)
            own = None if uniforms is None else uniforms[alive, step].to(model.device)
            chosen = choose(logits, own)
        new = chosen.cpu()
        yield {int(alive[i]): int(new[i]) for i in (~done).nonzero().squeeze(-1)}
        done = done | (new == codec.eos_id)
        finished = int(done.sum())
        if finished == len(alive):
            return
        if finished >= COMPACT_SHARE * len(alive):
            keep = (~done).nonzero().squeeze(-1)
            alive, done = alive[keep], done[keep]
            keep = keep.to(model.device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = positions[:, -1:] + 1


class Text:
    """The text of a growing list of ids, in pieces; no character is given in half."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.ids, self._given = codec, list[int](), ""

    def add(self, one: int) -> str:
        """What one more id makes of the text; empty within a character."""
        self.ids.append(one)
        whole = self.codec.text(self.ids).rstrip(_PARTIAL)
        if not whole.startswith(self._given):
            return ""
        piece = whole[len(self._given) :]
        self._given += piece
        return piece

    def rest(self) -> str:
        """What remains at the end: the bytes of a character that was cut off."""
        text = self.codec.text(self.ids)
        piece, self._given = text[len(self._given) :], text
        return piece

    @property
    def ended(self) -> bool:
        """Whether the model ended it, by EOS."""
        return self.ids[-1:] == [self.codec.eos_id]
