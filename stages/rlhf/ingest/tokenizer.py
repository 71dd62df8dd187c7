"""The tokenizer of the chosen base model: its own, or a byte-level BPE trained on our text."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from stages.rlhf.hub import fetch

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")  # ids 0, 1, 2

# Words with the space before them, up to three digits, signs, breaks: the split of Llama 3.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXTRA_WEIGHT = 5_000  # times that each `extra` text counts: enough for its words to be merged
_MAX_CHARACTERS = 8_000_000  # of training text: about 20 MB of Korean


# No word: BPE takes the square of its length in time, minutes for a million signs.
_ENDLESS = re.compile(r"\S{2000,}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, extra: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of the first 8 million characters of `texts`; the same texts, the same BPE.

    `extra`: pieces of the prompt template, counted so often that their words become tokens.
    Raises ValueError where the text is too little for `vocab_size`.
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
            f"the training text gives {size} tokens, vocab_size is {vocab_size}:"
            " more text or a smaller architecture.vocab_size is needed"
        )
    return tokenizer


def load_hub_tokenizer(hub: str, revision: str | None) -> Tokenizer:
    """The tokenizer of a model on the hub, or in the hub's cache.

    Raises ValueError naming the model where it cannot be had.
    """
    path = fetch(hub, revision, ["tokenizer.json"]) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{hub} (revision {revision or 'latest'}): no tokenizer.json there")
    return Tokenizer.from_file(str(path))


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = _MAX_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield _ENDLESS.sub(" ", text[:left])
        left -= len(text)
