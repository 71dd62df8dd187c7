"""BM25 over passages and over their sentences, by several kinds of tokens (bm25s).

A passage's score is the weighted sum over the tokenisers of its own BM25 and the highest BM25 among
its sentences: a question is about one sentence, and the passage says what that one is about. Scores
are added, for all are BM25 of the same texts; by rank (RRF) less is found on KorQuAD
(metrics/tables/retrieval.csv).
"""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import bm25s
import numpy as np
from numpy.typing import NDArray

from stages.rlhf.retrieval.parts import in_parts
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.retrieval.search import Scores, best
from stages.rlhf.retrieval.tokens import TOKENISERS, Name, topic, version_of

# Chosen by hand on all of KorQuAD's development set, which therefore flatters them.
K1, B = 0.6, 0.5  # bm25s's own are 1.5 and .75
WEIGHTS: dict[Name, float] = {"pieces": 1.0, "morphemes": 2.0}
CARD, STARTS = "lexical.json", "starts.npy"

Ids = list["array[int]"]  # four bytes a token: a million passages are many


class Field(NamedTuple):
    """One tokeniser's indexes; `sentences` is None where every passage is one sentence."""

    name: Name
    passages: bm25s.BM25
    sentences: bm25s.BM25 | None


class Lexical:
    """Scores passages for a question. `starts` (P): the index of each passage's first sentence."""

    def __init__(self, fields: Sequence[Field], starts: NDArray[np.int64]) -> None:
        self.fields, self.starts = list(fields), starts

    @classmethod
    def build(
        cls, passages: Sequence[Passage], names: Sequence[Name], kept: Path | None = None
    ) -> "Lexical":
        """Index P passages; `kept`: a folder from which a build that was killed resumes.

        Raises ValueError for a corpus without a passage, or without a word.
        """
        if not passages:
            raise ValueError("the corpus has no passage to index")
        counts = np.array([len(passage.sentences) for passage in passages])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        texts = [sentence for passage in passages for sentence in passage.sentences]
        several = len(texts) > len(passages)
        fields = []
        for name in names:
            ids, vocabulary = _encoded(name, texts, kept)
            if not vocabulary:
                raise ValueError("the corpus has no word to index")
            by_sentence = _index(ids, vocabulary)
            if not several:
                fields.append(Field(name, by_sentence, None))
                continue
            fields.append(Field(name, _index(_joined(ids, counts), vocabulary), by_sentence))
        return cls(fields, starts)

    def scores(self, question: str) -> Scores:
        """(P): how well each passage fits; 0 where they share nothing."""
        found: Scores = np.zeros(len(self.starts), dtype=np.float32)
        about = topic(question)
        for name, passages, sentences in self.fields:
            (words,) = TOKENISERS[name]([about])
            ids = passages.get_tokens_ids(words)
            if not ids:
                continue
            found += WEIGHTS[name] * passages.get_scores_from_ids(ids)
            if sentences is not None:
                of_sentences = sentences.get_scores_from_ids(ids)
                found += WEIGHTS[name] * np.maximum.reduceat(of_sentences, self.starts)
        return found

    def find(self, question: str, count: int) -> list[int]:
        """At most `count` passages, the best first."""
        return best(self.scores(question), count)

    def save(self, folder: Path) -> None:
        """Arrays and JSON, nothing pickled."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, passages, sentences in self.fields:
            passages.save(folder / name / "passages", show_progress=False)
            if sentences is not None:
                sentences.save(folder / name / "sentences", show_progress=False)
        np.save(folder / STARTS, self.starts, allow_pickle=False)
        card = {"tokens": [field.name for field in self.fields], "passages": len(self.starts)}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Lexical":
        """What `save` wrote, its arrays mapped into memory. Raises ValueError if it is missing."""
        if not (folder / CARD).is_file():
            raise ValueError(f"{folder}: no {CARD}; no index here")
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        fields = []
        for name in card["tokens"]:
            several = (folder / name / "sentences").is_dir()
            sentences = _load(folder / name / "sentences") if several else None
            fields.append(Field(name, _load(folder / name / "passages"), sentences))
        return cls(fields, np.load(folder / STARTS, allow_pickle=False))


def _encoded(name: Name, texts: Sequence[str], kept: Path | None) -> tuple[Ids, dict[str, int]]:
    """Tokens of N texts as numbers, and the vocabulary."""

    def make(part: Sequence[str]) -> bytes:
        return "".join("\t".join(words) + "\n" for words in TOKENISERS[name](part)).encode()

    vocabulary: dict[str, int] = {}
    ids: Ids = []
    for content in in_parts(texts, make, kept, version_of(name)):
        for line in content.decode().splitlines():
            words = line.split("\t") if line else []
            own = (vocabulary.setdefault(word, len(vocabulary)) for word in words)
            ids.append(array("i", own))
    return ids, vocabulary


def _joined(ids: Ids, counts: NDArray[np.int64]) -> Ids:
    """Tokens of N sentences -> of P passages of so many each; `ids` is used up."""
    ids.reverse()
    found = []
    for count in counts.tolist():
        passage = array("i")
        for _ in range(count):
            passage.extend(ids.pop())
        found.append(passage)
    return found


def _index(ids: Ids, vocabulary: dict[str, int]) -> bm25s.BM25:
    made = bm25s.BM25(k1=K1, b=B)
    made.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    return made


def _load(folder: Path) -> bm25s.BM25:
    return bm25s.BM25.load(folder, mmap=True, show_progress=False)
