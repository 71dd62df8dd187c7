"""The only place where text becomes token ids: prompts and responses.

Different here: prompt and response are encoded separately, so that no token spans the boundary and
the response's first token is the same in training, scoring and generation; EOS is always part of
the response, and never the padding token.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def template() -> str:
    """The chat template's source; the same for every model."""
    return TEMPLATE_FILE.read_text(encoding="utf-8").removesuffix("\n")


def template_hash() -> str:
    """sha256 of the chat template; a model trained with a different one is rejected."""
    return hashlib.sha256(template().encode()).hexdigest()


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Set our chat template and a padding token other than EOS.

    Raises ValueError if the vocabulary has no such token.
    """
    tokenizer.chat_template = template()
    tokenizer.padding_side = "right"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no EOS token")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        spare = ("<|finetune_right_pad_id|>", "<pad>", "<|reserved_special_token_0|>", "<unk>")
        known = [token for token in spare if token in vocabulary]
        if not known:
            raise ValueError(
                f"{tokenizer.name_or_path}: no padding token but EOS; expected one of {spare}"
            )
        tokenizer.pad_token = known[0]
    return tokenizer


@dataclass(frozen=True)
class Codec:
    """Text to token ids, and back."""

    tokenizer: Any

    @property
    def pad_id(self) -> int:
        """Pads rows to equal length; masked everywhere."""
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_id(self) -> int:
        """Ends every response."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, question: str) -> list[int]:
        """The question in the chat template, up to where the response starts; one BOS."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def response_ids(self, response: str) -> list[int]:
        """Ids of the response, EOS included."""
        return [*self.tokenizer.encode(response, add_special_tokens=False), self.eos_id]

    def text(self, ids: list[int]) -> str:
        """Decoded text: special tokens dropped, outer whitespace stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
