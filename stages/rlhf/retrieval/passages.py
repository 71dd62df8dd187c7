"""A corpus as passages: whole sentences, as many as fit a size.

A source is a JSONL file whose rows have a `text`, or a folder of .txt, .md, .pdf and .jsonl files.
What cannot be read, or has no text (a scanned PDF), is set aside and counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from stages.rlhf.korean import clean, sentence_ends
from stages.rlhf.records import read_jsonl

PASSAGES = "passages.jsonl"  # of a library, see library.py
SUFFIXES = (".txt", ".md", ".pdf", ".jsonl")
LONGEST_SENTENCE = 1000  # characters; a longer one, a table or a file without marks, is cut


class Passage(NamedTuple):
    """Consecutive sentences of one source: `source` is a path, with the row or page it is from."""

    source: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentences, a space between them."""
        return " ".join(self.sentences)


@dataclass
class Corpus:
    """Reads texts. `set_aside`: what it could not use, by reason; `examples`: the first of each."""

    path: Path
    set_aside: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Source and clean text, in the order of the paths. Raises ValueError without a path."""
        if self.path.is_file():
            yield from self._file(self.path, self.path.name)
            return
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such file or folder; expected a corpus")
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            yield from self._file(file, file.relative_to(self.path).as_posix())

    def _file(self, file: Path, name: str) -> Iterator[tuple[str, str]]:
        suffix = file.suffix.lower()
        if suffix == ".jsonl":
            found = self._rows(file, name)
        elif suffix == ".pdf":
            found = self._pages(file, name)
        elif suffix in SUFFIXES:
            found = self._plain(file, name)
        else:
            self._reject(f"not one of {', '.join(SUFFIXES)}", name)
            return
        for source, text in found:
            if cleaned := clean(text).strip():
                yield source, cleaned
            else:
                self._reject("no text", source)

    def _rows(self, file: Path, name: str) -> Iterator[tuple[str, str]]:
        for number, row in enumerate(read_jsonl(file), 1):
            text = row.get("text")
            if not isinstance(text, str):
                raise ValueError(
                    f"{file}, line {number}: expected a text under the key 'text', not"
                    f" {json.dumps(text, ensure_ascii=False):.60}"
                )
            yield f"{name}:{number}", text

    def _plain(self, file: Path, name: str) -> Iterator[tuple[str, str]]:
        try:
            yield name, file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            self._reject("not UTF-8", name)

    def _pages(self, file: Path, name: str) -> Iterator[tuple[str, str]]:
        from pypdf import PdfReader  # not above: who has no PDF needs no reader of them
        from pypdf.errors import PyPdfError

        try:
            for number, page in enumerate(PdfReader(file).pages, 1):
                yield f"{name}:{number}", page.extract_text()
        except (PyPdfError, ValueError, KeyError, OSError):
            self._reject("not a readable PDF", name)

    def _reject(self, reason: str, name: str) -> None:
        self.set_aside[reason] += 1
        self.examples.setdefault(reason, name)


def sentences_of(text: str) -> list[str]:
    """Its sentences, stripped; one that is longer than LONGEST_SENTENCE is cut at blanks."""
    ends = [0, *sentence_ends(text), len(text)]
    found = (" ".join(text[start:end].split()) for start, end in pairwise(ends))
    return [piece for sentence in found if sentence for piece in _cut(sentence)]


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > LONGEST_SENTENCE:
        at = sentence.rfind(" ", 1, LONGEST_SENTENCE) + 1 or LONGEST_SENTENCE
        yield sentence[:at].strip()
        sentence = sentence[at:]
    if sentence:
        yield sentence


def split(texts: Iterable[tuple[str, str]], characters: int) -> Iterator[Passage]:
    """Passages of at most `characters`, or of one sentence; none goes over the end of a text."""
    for source, text in texts:
        held: list[str] = []
        size = 0
        for sentence in sentences_of(text):
            if held and size + 1 + len(sentence) > characters:
                yield Passage(source, tuple(held))
                held, size = [], 0
            size += len(sentence) + bool(held)
            held.append(sentence)
        if held:
            yield Passage(source, tuple(held))


def has_library(folder: Path) -> bool:
    """Whether an index has been built there; known before all that searching needs is imported."""
    return (folder / PASSAGES).is_file()
