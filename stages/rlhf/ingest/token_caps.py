"""Lengths in tokens: caps on questions and answers, clipping, and percentiles of the data."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer

from stages.rlhf.chat import encode_as_text
from stages.rlhf.korean import sentence_ends
from stages.rlhf.sizes import TEMPLATE_TOKENS


class Caps:
    """The caps of the chosen model, and statistics of the lengths seen.

    The tokenizer is changed to encode text alone, as chat.Codec does.
    `answer` is max_answer_tokens minus one token for EOS.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        max_answer_tokens: int,
        policy: Literal["clip", "drop"],
    ) -> None:
        self.question = max_prompt_tokens - TEMPLATE_TOKENS
        self.answer = max_answer_tokens - 1
        self._tokenizer = encode_as_text(tokenizer)
        self._policy = policy
        self._met: dict[str, Counter[int]] = {}
        self._lengths: dict[str, int] = {}
        if self.question < 1:
            raise ValueError(
                f"max_prompt_tokens ({max_prompt_tokens}) must be above {TEMPLATE_TOKENS},"
                " the tokens reserved for the chat template"
            )

    def measure(self, texts: Iterable[str]) -> None:
        """Encode texts at once, on all cores: their lengths are known until the next call."""
        distinct = list(dict.fromkeys(texts))
        encoded = self._tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        self._lengths = dict(zip(distinct, map(len, encoded), strict=True))

    def tokens(self, text: str) -> int:
        """Length of a text."""
        length = self._lengths.get(text)
        if length is None:
            length = len(self._tokenizer.encode(text, add_special_tokens=False))
        return length

    def question_fits(self, question: str) -> bool:
        """Whether the question is within its cap."""
        length = self.tokens(question)
        self._count("question", length)
        return length <= self.question

    def fit_answer(self, answer: str, kind: Literal["sft_answer", "rm_answer"]) -> str | None:
        """The answer, or its leading sentences that fit; None if it is too long.

        Clipped at the last sentence end within the cap, because EOS follows a clipped answer too.
        """
        length = self.tokens(answer)
        self._count(kind, length)
        if length <= self.answer:
            return answer
        if self._policy == "drop":
            return None
        encoding = self._tokenizer.encode(answer, add_special_tokens=False)
        limit = encoding.offsets[self.answer][0]  # offset of the first token beyond the cap
        ends = sentence_ends(answer)
        for end in reversed(ends[: bisect_right(ends, limit)]):
            if len(self._tokenizer.encode(answer[:end], add_special_tokens=False)) <= self.answer:
                return answer[:end]
        return None

    def percentiles(self) -> dict[str, dict[str, int | None]]:
        """P50, P95 and P99 of all lengths seen, before any cap; nearest-rank method."""
        return {
            kind: {f"p{share}": _percentile(self._met.get(kind), share) for share in (50, 95, 99)}
            for kind in ("question", "sft_answer", "rm_answer")
        }

    def _count(self, kind: str, length: int) -> None:
        self._met.setdefault(kind, Counter())[length] += 1


def _percentile(counts: Counter[int] | None, share: int) -> int | None:
    if not counts:
        return None
    left = -(-counts.total() * share // 100)
    for length in sorted(counts):
        left -= counts[length]
        if left <= 0:
            return length
    raise AssertionError("the shares are at most 100")
