"""The one place where a question and an answer become token ids.

Different here: prompt and answer are encoded apart, so that no token ever spans the boundary and
the answer's first token is the same in training, scoring and generation; EOS is always a token of
the answer, and never the padding token.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
TEMPLATE_TOKENS = 16  # room that preprocess leaves for the template in max_prompt_tokens


def template() -> str:
    """The chat template's source, whatever the model."""
    return TEMPLATE_FILE.read_text(encoding="utf-8").removesuffix("\n")


def template_hash() -> str:
    """sha256 of the chat template; models trained with another one are refused."""
    return hashlib.sha256(template().encode()).hexdigest()


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Give a tokenizer our template and a padding token that is not EOS.

    Raises ValueError where the vocabulary holds no token that can pad.
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
    """Question and answer to token ids, and back."""

    tokenizer: Any

    @property
    def pad_id(self) -> int:
        """Fills rows to one length; masked everywhere."""
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_id(self) -> int:
        """Ends every answer."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, question: str) -> list[int]:
        """Ids of the template up to the place where the answer starts, with a single BOS."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer, EOS included."""
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.eos_id]

    def text(self, ids: list[int]) -> str:
        """The answer's text: special tokens dropped, outer whitespace stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
