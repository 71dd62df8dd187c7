"""The passages of an index with all that finds them, in one folder.

passages.jsonl   {"source", "sentences"}
words.json       in how many passages each content word is; words of many questions
lexical/         BM25
dense/           embeddings, if they are wanted
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.rlhf.model import embedder
from stages.rlhf.records import read_jsonl, write_jsonl
from stages.rlhf.retrieval.dense import Dense
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.passages import PASSAGES, Passage, has_library
from stages.rlhf.retrieval.search import Index, search
from stages.rlhf.retrieval.support import Support
from stages.rlhf.retrieval.tokens import Name

LEXICAL, DENSE = "lexical", "dense"


@dataclass(frozen=True)
class Library:
    """Passages, and the ones that a question is about."""

    texts: Sequence[str]
    indexes: Sequence[Index]
    support: Support

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        names: Sequence[Name],
        folder: Path,
        embedder_folder: Path | None = None,
        kept: Path | None = None,
        questions: Sequence[str] = (),
    ) -> "Library":
        """Index the passages, of equal ones the first, and write all of it to `folder`.

        With a folder of an embedder, by its embeddings, too. `kept`: a folder from which a build
        that was killed resumes. `questions`: those from which Support learns how people ask.
        Raises ValueError where there is no passage.
        """
        by_text: dict[str, Passage] = {}
        for passage in passages:
            by_text.setdefault(passage.text, passage)
        distinct = list(by_text.values())
        lexical = Lexical.build(distinct, names, kept)
        lexical.save(folder / LEXICAL)
        texts = [passage.text for passage in distinct]
        support = Support.of(texts, questions)
        support.save(folder)
        indexes: list[Index] = [lexical]
        if embedder_folder:
            model = embedder.load(embedder_folder)
            identity = embedder.embedder_hash(embedder_folder)
            indexes.append(Dense.build(model, texts, identity, folder / DENSE, kept))
        write_jsonl(folder / PASSAGES, (passage._asdict() for passage in distinct))  # all is there
        return cls(texts, indexes, support)

    @classmethod
    def load(cls, folder: Path, embedder_folder: Path | None = None) -> "Library":
        """What `build` wrote. Raises ValueError where it is missing, or of another embedder."""
        if not has_library(folder):
            raise ValueError(f"{folder}: no {PASSAGES}; expected an index: rag.enabled makes one")
        texts = [" ".join(row["sentences"]) for row in read_jsonl(folder / PASSAGES)]
        indexes: list[Index] = [Lexical.load(folder / LEXICAL)]
        if (folder / DENSE).is_dir():
            if embedder_folder is None:
                raise ValueError(f"{folder / DENSE}: its embedder is needed to search it")
            model = embedder.load(embedder_folder)
            identity = embedder.embedder_hash(embedder_folder)
            indexes.append(Dense.load(folder / DENSE, model, identity))
        return cls(texts, indexes, Support.load(folder))

    def find(self, question: str, count: int) -> list[int]:
        """At most `count` passages, the best first."""
        return search(self.indexes, question, count)
