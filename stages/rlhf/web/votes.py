"""Votes as ranked groups, a JSON line each: rows that `data.source=jsonl` reads as part rm."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.rlhf.chat import without_citations

RANKS = {"a": [1, 2], "b": [2, 1], "tie": [1, 1], "both_bad": [1, 1]}


def group(
    ask: str,
    question: str,
    answers: Mapping[str, Mapping[str, Any]],
    a: str,
    b: str,
    vote: str,
    passages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A vote between the answers of models `a` and `b` as a row of the ranked groups.

    1 is the better rank; a tie and "both bad" have equal ranks. With retrieval (`passages` not
    None) the answers are without citations, which mean nothing elsewhere; the row keeps them apart.
    Raises ValueError for an unknown vote or model, and where the two answers are the same.
    """
    if vote not in RANKS:
        raise ValueError(f"vote is {vote!r}; expected one of {', '.join(RANKS)}")
    for name in (a, b):
        if name not in answers:
            raise ValueError(f"no answer by {name!r}; expected one of {', '.join(answers)}")
    texts = [answers[name]["answer"] for name in (a, b)]
    if passages is not None:
        texts = [without_citations(text) for text in texts]
    if texts[0] == texts[1]:
        raise ValueError("the two answers are the same; there is nothing to choose")
    row = {
        "id": f"vote-{ask}-{a}-{b}",
        "question": question,
        "answers": texts,
        "ranks": RANKS[vote],
        "vote": vote,
        "models": [a, b],
        "ended": [answers[name]["ended"] for name in (a, b)],
    }
    if passages is not None:
        row |= {"passages": [*passages], "cited": [answers[name]["cited"] for name in (a, b)]}
    return row


class VoteFile:
    """A file that votes are appended to; a vote that `append` has returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where the file cannot be written."""
        self.path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a line. Raises OSError; then nothing of it remains."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock, self.path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:  # half a line is left where an append was killed
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                if file.write(line) != len(line):
                    raise OSError(f"{self.path}: the disk took half a line")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
