"""Does a passage state what an answer states? From the words of both, without a model.

An answer's claim is what its first sentence adds to the question: its content words that the
question lacks. Words that many questions have (기호, 연도) say what is wanted, in these words or
in others, and are no claim. A passage supports it where it has most of the claim, by the words'
weights, and the rarest word of the question's topic, its subject. Of a phrase that every correct
answer contains nothing is estimated: it is in the passage, or not.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from stages.rlhf.measure.text import contains
from stages.rlhf.retrieval.passages import sentences_of
from stages.rlhf.retrieval.tokens import terms, topic

FILE = "words.json"  # of an index
SUPPORTS, UNRELATED = 0.6, 0.25  # weight of the claim from which, up to which, a passage is so
COMMON = 0.005  # share of the questions from which on a word says what is wanted

# Content words of "안녕하세요", "네, 좋은 질문입니다", "물론이죠", "답해 드리겠습니다"
COURTESY = frozenset(
    ["안녕/N", "반갑/V", "물론/M", "좋/V", "질문/N", "감사/N", "고맙/V", "답/N", "답하/V", "드리/V"]
)

Words = frozenset[str]
Stance = Literal["supports", "other", "unclear"]


class Support:
    """`frequencies`: in how many of the `count` passages of the index each content word is.

    `common`: words of many questions.
    """

    def __init__(
        self, frequencies: Mapping[str, int], count: int, common: Iterable[str] = ()
    ) -> None:
        self.frequencies, self.count, self.common = frequencies, count, frozenset(common)
        self.rarest = lru_cache(maxsize=1 << 14)(self._rarest)

    @classmethod
    def of(cls, texts: Iterable[str], questions: Sequence[str] = ()) -> "Support":
        """Count the words of all passages, and those of questions."""
        found, count = _counts(texts)
        in_questions, _ = _counts(questions)
        least = max(2, COMMON * len(questions))
        return cls(found, count, (word for word, n in in_questions.items() if n >= least))

    def save(self, folder: Path) -> None:
        """One file, JSON."""
        words = dict(sorted(self.frequencies.items()))
        whole = {"passages": self.count, "words": words, "questions": sorted(self.common)}
        text = json.dumps(whole, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Support":
        """What `save` wrote. Raises ValueError if it is missing."""
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder}: no {FILE}; expected an index: rag.enabled makes one")
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        try:
            return cls(found["words"], found["passages"], found["questions"])
        except KeyError as error:
            raise ValueError(
                f"{folder / FILE}: no {error}; expected words, passages and questions: an index"
                " of another version, `dvc repro index` makes it anew"
            ) from error

    def weight(self, word: str) -> float:
        """Inverse document frequency, as BM25 has it: never negative."""
        frequency = self.frequencies.get(word, 0)
        return math.log1p((self.count - frequency + 0.5) / (frequency + 0.5))

    def share(self, part: Iterable[str], whole: Iterable[str]) -> float:
        """Of the weight of the words, that of some of them; 1 of no words at all."""
        total = sum(map(self.weight, whole))
        return sum(map(self.weight, part)) / total if total else 1.0

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
        named = [named_in(passage, word) for word in subjects]
        if phrase is not None:
            share = float(contains(passage, phrase))
        elif wanted := self.claim(question, answer):
            share = self.share((word for word in wanted if named_in(passage, word)), wanted)
        else:
            return "unclear"
        if named[0] and share >= SUPPORTS:
            return "supports"
        return "other" if share <= UNRELATED or not any(named) else "unclear"

    def claim(self, question: str, answer: str) -> Words:
        """What the answer claims, but for words of many questions, if there are others."""
        found = claim(question, answer)
        return found - self.common or found

    def has(self, text: str, words: Words) -> bool:
        """Whether a text has most of the words, but for those of many questions.

        Of nothing but such words it has to have the rarest.
        """
        if own := words - self.common:
            return self.share((word for word in own if named_in(text, word)), own) >= SUPPORTS
        rarest = max(words, key=lambda word: (self.weight(word), word), default=None)
        return rarest is not None and contains(text, rarest.rpartition("/")[0])

    def foreign(self, passage: str, question: str) -> bool:
        """Whether the passage is about something else: it has neither of the rarest words."""
        return not any(named_in(passage, word) for word in self.rarest(question))


def _counts(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """In how many texts each word is, and how many there are."""
    found, count = Counter[str](), 0
    for words in terms(list(texts)):
        found.update(set(words))
        count += 1
    return found, count


@lru_cache(maxsize=1 << 16)
def words_of(text: str) -> Words:
    """Content words of a text, each once."""
    return frozenset(next(iter(terms([text]))))


def named_in(text: str, word: str) -> bool:
    """Whether a word of the text begins so, or has this stem.

    What Kiwi takes for a noun may have a particle at its end: 비제이, of 비제이다.
    """
    form, _, kind = word.rpartition("/")
    if kind == "V":
        return word in words_of(text)
    shorter = form[:-1] if len(form) > 2 and form.endswith("이") else form
    return re.search(rf"(?<!\w){re.escape(shorter)}", text.lower()) is not None


def _has(text: str, word: str) -> bool:
    """Whether the text has the noun anywhere, or other words as `named_in` has them."""
    form, _, kind = word.rpartition("/")
    return form in text.lower() if kind == "N" else named_in(text, word)


@lru_cache(maxsize=1 << 16)
def claim(question: str, answer: str) -> Words:
    """The content words, which the question lacks, of the first sentence that has any.

    A sentence that asks claims nothing, nor does one of courtesy. Of 작은창자 in the question, 창자
    is known, too: Kiwi may take the name apart in one of both.
    """
    for sentence in sentences_of(answer):
        words = words_of(sentence) - COURTESY - words_of(question)
        new = frozenset(word for word in words if not _has(question, word))
        if not sentence.endswith("?") and new:
            return new
    return frozenset()
