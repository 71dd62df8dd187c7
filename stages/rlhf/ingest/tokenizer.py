"""The tokenizer of the base model: its own, or a byte-level BPE trained on our text."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")  # ids 0, 1, 2

# Llama 3's split: words with their leading space, up to three digits, punctuation, line breaks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXTRA_WEIGHT = 5_000  # repetitions of each `extra` text: enough for its words to be merged
_MAX_CHARACTERS = 8_000_000  # of training text, about 20 MB of Korean


# Not words. BPE is quadratic in the length of a word: minutes for a million characters.
_ENDLESS = re.compile(r"\S{2000,}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, extra: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of the first 8 million characters of `texts`; deterministic.

    `extra`: pieces of the chat template, repeated so often that their words become tokens.
    Raises ValueError if there is too little text for `vocab_size`.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(_WORDS), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    repeated = chain.from_iterable(repeat(text, _EXTRA_WEIGHT) for text in extra)
    tokenizer.train_from_iterator(chain(_first(texts), repeated), trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise ValueError(
            f"the training text yields {size} tokens, but vocab_size is {vocab_size};"
            " provide more text or lower architecture.vocab_size"
        )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model in a folder, such as the hub cache's.

    Raises ValueError naming the file if it is missing or unreadable.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the model's tokenizer")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # a bare Exception is what tokenizers raises
        raise ValueError(f"{file}: not a tokenizer: {error}") from error


def check_window(folder: Path, name: str, max_prompt_tokens: int, max_answer_tokens: int) -> None:
    """Raise ValueError if the model's context window is too small for a prompt and a response."""
    file = folder / "config.json"
    if not file.is_file():
        return  # stage base says so
    config = json.loads(file.read_text(encoding="utf-8"))
    config = config.get("text_config", config)  # of a model that also reads images
    window = config.get("max_position_embeddings", config.get("n_positions"))
    if window is not None and max_prompt_tokens + max_answer_tokens > window:
        raise ValueError(
            f"max_prompt_tokens ({max_prompt_tokens}) and max_answer_tokens ({max_answer_tokens})"
            f" exceed the context window of {name}, {window} tokens; lower one of them"
        )


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = _MAX_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield _ENDLESS.sub(" ", text[:left])
        left -= len(text)
