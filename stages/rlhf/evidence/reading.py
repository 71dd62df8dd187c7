"""Reading practice: rows with passages in which rare names and numbers are others.

What a model has learned by heart it does not look up: of passages that say what it knows, a small
one learns nothing about reading. Here a row's rare nouns become other rare nouns of the library,
the same wherever the row has them, and its numbers other numbers, so that nothing but the passages
says what is right. Nouns that many passages have (수도, 작가) stay: they are what is looked for.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import TypeVar

from stages.rlhf.chat import cite, cited, declines, without_citations
from stages.rlhf.records import SftRow
from stages.rlhf.retrieval.tokens import nouns

K = TypeVar("K")
COMMON = 0.01  # share of the texts from which on a noun stays as it is
PARTICLE = 2  # characters: Kiwi at times takes 베이징이 for a noun where 베이징 is one
_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"\d+")
_LATIN = re.compile(r"[A-Za-z]+")
_SYLLABLES, _FINALS, _RIEUL = 0xAC00, 28, 8  # Unicode's order of syllables; ㄹ among the finals


class Names:
    """The rare nouns of a library's texts, and their numbers; `mentions`: other texts with them."""

    def __init__(self, texts: Sequence[str], mentions: Iterable[str] = ()) -> None:
        found, words, numbers = Counter[str](), Counter[str](), set[str]()
        tails = {tail for text in mentions for _, tail in nouns(text)}
        for text in texts:
            here = {noun: tail for noun, tail in nouns(text) if not _NUMBER.search(noun)}
            found.update(here.keys())
            tails.update(here.values())
            words.update(set(text.split()))
            numbers.update(_NUMBER.findall(text))
        most = max(1, COMMON * len(texts))
        rare = [n for n in found if found[n] <= most and not _has_particle(n, found)]
        self.common = frozenset(word for word in words if words[word] > most)
        self.tails = frozenset(tails)  # what follows a noun in its word
        self.alike = _by(kind_of, rare)
        self.rare = frozenset(rare)
        self.numbers = _by(len, numbers)
        self.noun_of = lru_cache(maxsize=1 << 16)(self._noun_of)

    def _noun_of(self, word: str) -> str:
        """The longest rare noun that the word begins with, before a particle; or nothing."""
        if word in self.common:  # 원자, where 원 is rare
            return ""
        for end in range(len(word), 0, -1):
            if word[:end] in self.rare and word[end:] in self.tails:
                return word[:end]
        return ""


def _has_particle(noun: str, counts: Mapping[str, int]) -> bool:
    """Whether it begins with a noun that is at least as frequent and shorter by a particle."""
    return any(counts.get(noun[:-n], 0) >= counts[noun] for n in range(1, PARTICLE + 1))


def _by(key: Callable[[str], K], words: Iterable[str]) -> Mapping[K, Sequence[str]]:
    found: dict[K, list[str]] = defaultdict(list)
    for word in sorted(words):
        found[key(word)].append(word)
    return dict(found)


def kind_of(noun: str) -> str:
    """latin, other, or what it ends with, which decides 은 or 는, 로 or 으로."""
    if _LATIN.fullmatch(noun):
        return "latin"
    if not "가" <= noun[-1] <= "힣":
        return "other"
    final = (ord(noun[-1]) - _SYLLABLES) % _FINALS
    return "vowel" if final == 0 else "rieul" if final == _RIEUL else "consonant"


class Renaming:
    """Other names for the rare nouns and the numbers of one row, the same everywhere in it."""

    def __init__(self, names: Names, rng: Random) -> None:
        self.names, self.rng = names, rng
        self.given: dict[str, str] = {}
        self.taken: set[str] = set()

    def text(self, text: str) -> str:
        """The text with other names."""
        return _WORD.sub(lambda found: self._word(found[0]), text)

    def _word(self, word: str) -> str:
        noun = self.names.noun_of(word)
        if noun:
            alike = self.names.alike[kind_of(noun)]
            return self._other(noun, alike) + word[len(noun) :]
        numbers = self.names.numbers
        return _NUMBER.sub(lambda n: self._other(n[0], numbers.get(len(n[0]), ())), word)

    def _other(self, old: str, alike: Sequence[str]) -> str:
        """One of these that nothing in the row has become."""
        if old not in self.given:
            barred = {old} | self.taken
            tries = self.rng.sample(alike, min(len(alike), len(barred) + 1))
            free = [new for new in tries if new not in barred]
            self.given[old] = free[0] if free else old
            self.taken.add(self.given[old])
        return self.given[old]


def lessons(rows: Sequence[SftRow], names: Names, rounds: int, seed: int) -> Iterator[SftRow]:
    """Every row that has passages, `rounds` times with all; before that, a third as often with one.

    Each time it has other names. Refusals stay as they are. An answer with a name or number that
    neither its question nor its passages have teaches to invent: it is left out. Ids get the number
    of the time.
    """
    alone = -(-rounds // 3)
    for number in range(alone + rounds):
        for row in rows:
            if row.passages:
                rng = Random(f"{seed}/{number}/{row.id}")
                shown = with_one_passage(row, rng) if number < alone else row
                if made := renamed(shown, Renaming(names, rng), number):
                    yield made


def with_one_passage(row: SftRow, rng: Random) -> SftRow:
    """The row with the passage that it cites alone; with any where it cites none."""
    passages, number = row.passages or (), cited(row.answer)
    if number is None or number > len(passages):
        return row.model_copy(update={"passages": (rng.choice(passages),)})
    answer = cite(without_citations(row.answer), 1)
    return row.model_copy(update={"passages": (passages[number - 1],), "answer": answer})


def renamed(row: SftRow, renaming: Renaming, number: int) -> SftRow | None:
    """The row with other names; None if its answer has one that it has from nowhere.

    What the answer must contain is not known any more.
    """
    question = renaming.text(row.question)
    passages = tuple(renaming.text(passage) for passage in row.passages or ())
    answer, known = row.answer, len(renaming.given)
    if not declines(answer):
        source = cited(answer)
        answer = renaming.text(without_citations(answer))
        answer = answer if source is None else cite(answer, source)
    if len(renaming.given) > known:
        return None
    changed = {
        "id": f"{row.id}-{number}",
        "question": question,
        "passages": passages,
        "answer": answer,
        "must_contain": None,
    }
    return row.model_copy(update=changed)
