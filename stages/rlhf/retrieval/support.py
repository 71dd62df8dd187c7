"""Does a passage state what an answer states? From the words of both, without a model.

An answer's claim is what its first sentence adds to the question: its content words that the
question lacks. A passage supports it where it has most of the claim, by the words' weights, and
the rarest word of the question's topic, its subject. Of a phrase that every correct answer contains
nothing is estimated: it is in the passage, or not.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from stages.rlhf.measure.text import contains
from stages.rlhf.retrieval.passages import sentences_of
from stages.rlhf.retrieval.tokens import morphemes, topic

FILE = "words.json"  # of an index
SUPPORTS, UNRELATED = 0.6, 0.25  # weight of the claim from which, up to which, a passage is so

# Content words of "안녕하세요", "네, 좋은 질문입니다", "물론이죠", "답해 드리겠습니다"
COURTESY = frozenset(
    ["안녕/N", "반갑/V", "물론/M", "좋/V", "질문/N", "감사/N", "고맙/V", "답/N", "답하/V", "드리/V"]
)

Words = frozenset[str]
Stance = Literal["supports", "other", "unclear"]


class Support:
    """`frequencies`: in how many of the `count` passages of the index each content word is."""

    def __init__(self, frequencies: Mapping[str, int], count: int) -> None:
        self.frequencies, self.count = frequencies, count
        self.rarest = lru_cache(maxsize=1 << 14)(self._rarest)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Support":
        """Count the words of all passages."""
        found: Counter[str] = Counter()
        count = 0
        for words in morphemes(list(texts)):
            found.update(set(words))
            count += 1
        return cls(found, count)

    def save(self, folder: Path) -> None:
        """One file, JSON."""
        words = dict(sorted(self.frequencies.items()))
        text = json.dumps({"passages": self.count, "words": words}, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Support":
        """What `save` wrote. Raises ValueError if it is missing."""
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder}: no {FILE}; expected an index: rag.enabled makes one")
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(found["words"], found["passages"])

    def weight(self, word: str) -> float:
        """Inverse document frequency, as BM25 has it: never negative."""
        frequency = self.frequencies.get(word, 0)
        return math.log1p((self.count - frequency + 0.5) / (frequency + 0.5))

    def _rarest(self, question: str) -> list[str]:
        """The two rarest content words of the question's topic, of those that passages have."""
        known = [word for word in words_of(topic(question)) if word in self.frequencies]
        return sorted(known, key=lambda word: (-self.weight(word), word))[:2]

    def stance(self, passage: str, question: str, answer: str, phrase: str | None = None) -> Stance:
        """Whether the passage says so; "other": not about it; "unclear": neither is known.

        `phrase`: what every correct answer contains, if it is known.
        """
        subjects = self.rarest(question)
        if not subjects:
            return "unclear"
        words = words_of(passage)
        named = [_names(passage, word) for word in subjects]
        if phrase is not None:
            share = float(contains(passage, phrase))
        elif wanted := claim(question, answer):
            share = sum(map(self.weight, wanted & words)) / sum(map(self.weight, wanted))
        else:
            return "unclear"
        if named[0] and share >= SUPPORTS:
            return "supports"
        return "other" if share <= UNRELATED or not any(named) else "unclear"

    def foreign(self, passage: str, question: str) -> bool:
        """Whether the passage is about something else: it has neither of the rarest words."""
        return not any(_names(passage, word) for word in self.rarest(question))


@lru_cache(maxsize=1 << 16)
def words_of(text: str) -> Words:
    """Content words of a text, each once."""
    return frozenset(next(iter(morphemes([text]))))


def _names(passage: str, word: str) -> bool:
    """Whether the passage has the word, or one that begins so: 설국의, which is split as 설/국."""
    if word in words_of(passage):
        return True
    form = re.escape(word.rpartition("/")[0])
    return re.search(rf"(?<!\w){form}", passage.lower()) is not None


@lru_cache(maxsize=1 << 16)
def claim(question: str, answer: str) -> Words:
    """The content words, which the question lacks, of the first sentence that has any.

    A sentence that asks claims nothing, nor does one of courtesy.
    """
    known = words_of(question) | COURTESY
    for sentence in sentences_of(answer):
        if not sentence.endswith("?") and (found := words_of(sentence) - known):
            return found
    return frozenset()
