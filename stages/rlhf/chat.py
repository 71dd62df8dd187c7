"""The only place where text becomes token ids: prompts and responses.

Different here: prompt and response are encoded separately, so that no token spans the boundary and
the response's first token is the same in training, scoring and generation; EOS is always part of
the response, and never the padding token; what looks like a special token in a question or an
answer (<s>, [MASK], <|eot_id|>) is text and is encoded as text.

Passages that are shown with a question are part of the prompt, numbered from 1. An answer cites one
by its number in brackets, at the end: "일본의 수도는 도쿄입니다. [2]".
"""

import copy
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
# Added tokens in brackets steer a model (<unused12>, <|im_start|>, [INST]), whether or not they are
# flagged as special; those of HTML are text that Gemma has a token for.
_STEERING = re.compile(r"<.+>|\[.+\]")
_HTML = re.compile(
    r"</?(?:html|head|title|body|header|footer|main|nav|section|article|div|p|span|br|hr|h[1-6]|a"
    r"|img|iframe|ul|ol|li|dl|dt|dd|table|caption|thead|tbody|tfoot|tr|th|td|blockquote|pre|code"
    r"|strong|em|b|i|u|s|sub|sup|form|input|button|script|style)>"
)
_PADDING = ("<|finetune_right_pad_id|>", "<pad>", "<|reserved_special_token_0|>")
EVIDENCE = "근거:"  # the line of a message after which passages follow
REFUSAL = "근거에서 답을 찾을 수 없습니다."
_CITATION = re.compile(r"\s?\[(\d{1,3})\]")
# Stands where BOS does while a prompt is encoded; no character of any text (Unicode: never one).
_START = "\ufdd0"


def message(question: str, passages: Sequence[str]) -> str:
    """What the user's turn says: the question; with passages, those below it, a line each."""
    lines = [f"[{number}] {' '.join(text.split())}" for number, text in enumerate(passages, 1)]
    return "\n".join([question, EVIDENCE, *lines]) if lines else question


def fitting(passages: Sequence[str], tokens: Callable[[str], int], room: int) -> int:
    """How many of the first passages fit into `room` tokens of a message."""
    left = room - tokens(f"\n{EVIDENCE}")
    for number, text in enumerate(passages, 1):
        left -= tokens(f"\n[{number}] {text}")
        if left < 0:
            return number - 1
    return len(passages)


def cite(answer: str, number: int) -> str:
    """The answer with a citation at its end."""
    return f"{answer} [{number}]"


def cited(answer: str) -> int | None:
    """The number of the last passage that the answer cites; None without a citation."""
    found = _CITATION.findall(answer)
    return int(found[-1]) if found else None


def without_citations(answer: str) -> str:
    """What the answer says."""
    return _CITATION.sub("", answer).strip()


def declines(answer: str) -> bool:
    """Whether the answer says that the passages do not answer."""
    return REFUSAL in answer


def template() -> str:
    """The chat template's source; the same for every model."""
    return TEMPLATE_FILE.read_text(encoding="utf-8").removesuffix("\n")


def template_hash() -> str:
    """sha256 of the chat template; a model trained with a different one is rejected."""
    return hashlib.sha256(template().encode()).hexdigest()


def prepare_tokenizer(tokenizer: Any, embeddings: int | None = None) -> Any:
    """Set our chat template and a padding token other than EOS; let nothing be cut or padded.

    `embeddings`: rows of the model's embedding matrix, if they are known. Raises ValueError if the
    vocabulary has no such token, or has tokens without an embedding.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: no tokenizer.json, nor files that one can be made from")
    tokenizer.chat_template = template()
    tokenizer.padding_side = "right"
    tokenizer.backend_tokenizer.no_truncation()  # some tokenizer.json have them switched on
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no EOS token")
    vocabulary = tokenizer.get_vocab()
    spare = _spare_tokens(tokenizer, vocabulary, embeddings)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id) or (
        embeddings is not None and tokenizer.pad_token_id >= embeddings
    ):
        if not spare:
            raise ValueError(
                f"{name}: no padding token but EOS, {tokenizer.eos_token!r}; expected an unused"
                f" special token, for instance one of {_PADDING}"
            )
        tokenizer.pad_token = spare[0]
    if embeddings is not None:
        _check_fit(tokenizer, vocabulary, embeddings)
    return tokenizer


def _spare_tokens(tokenizer: Any, vocabulary: dict[str, int], embeddings: int | None) -> list[str]:
    """Tokens that may pad, the best first: no text becomes them, and they have no other use.

    The unknown token is the last of them.
    """
    names = ("eos_token", "bos_token", "unk_token", "cls_token", "sep_token", "mask_token")
    used = {getattr(tokenizer, name) for name in names}
    control = control_tokens(tokenizer.backend_tokenizer)
    unused = [token.content for _, token in sorted(control.items()) if token.content not in used]
    named = [t for word in ("pad", "reserved", "unused", "extra") for t in unused if word in t]
    known = [token for token in _PADDING if token in vocabulary]
    last = [tokenizer.unk_token] if tokenizer.unk_token != tokenizer.eos_token else []
    return [
        token
        for token in dict.fromkeys([*known, *named, *unused, *last])
        if token is not None and (embeddings is None or vocabulary[token] < embeddings)
    ]


def _check_fit(tokenizer: Any, vocabulary: dict[str, int], embeddings: int) -> None:
    """Raise ValueError for a token without an embedding, unless it is one that is never used."""
    control = control_tokens(tokenizer.backend_tokenizer)
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    beyond = {
        index: token
        for token, index in vocabulary.items()
        if index >= embeddings and (index in needed or index not in control)
    }
    if beyond:
        index = max(beyond)
        raise ValueError(
            f"{tokenizer.name_or_path}: token {beyond[index]!r} has id {index}, but the model has"
            f" embeddings for {embeddings} tokens (vocab_size of its config.json)"
        )


def control_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """The tokens that steer a model and never stand for text, by id."""
    return {
        index: token
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
        or (_STEERING.fullmatch(token.content) and not _HTML.fullmatch(token.content))
    }


def encode_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Change a tokenizer, in place, so that no text becomes a control token or is cut or padded.

    Raises ValueError if its model itself makes one of them from text.
    """
    control = control_tokens(tokenizer)
    for token in control.values():
        token.special = True  # of a copy
    tokenizer.add_special_tokens(list(control.values()))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    unknown = getattr(tokenizer.model, "unk_token", None)
    for index, token in control.items():
        ids = tokenizer.encode(token.content, add_special_tokens=False).ids
        if index in ids and token.content != unknown:
            raise ValueError(
                f"the tokenizer's model turns the text {token.content!r} into its special token;"
                " expected one that can write it in other tokens"
            )
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

    @cached_property
    def _text(self) -> Tokenizer:
        """A copy of the tokenizer that knows no special token but _START."""
        made = encode_as_text(copy.deepcopy(self.tokenizer.backend_tokenizer))
        made.add_tokens([AddedToken(_START, normalized=False)])
        return made

    def _ids(self, text: str) -> list[int]:
        return list(self._text.encode(text, add_special_tokens=False).ids)

    def prompt_ids(self, message: str) -> list[int]:
        """The user's message in the chat template, up to where the response starts; one BOS."""
        bos = self.tokenizer.bos_token or ""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message.replace(_START, "")}],
            tokenize=False,
            add_generation_prompt=True,
        ).removeprefix(bos)
        if not bos:
            return self._ids(text)
        return [int(self.tokenizer.bos_token_id), *self._ids(_START + text)[1:]]

    def response_ids(self, response: str) -> list[int]:
        """Ids of the response, EOS included."""
        return [*self._ids(response.replace(_START, "")), self.eos_id]

    def text(self, ids: list[int]) -> str:
        """Decoded text: special tokens dropped, outer whitespace stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
