"""A build that was killed goes on with the parts that were whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stages.rlhf.retrieval import lexical, parts
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.parts import in_parts
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.retrieval.tokens import pieces
from tests.conftest import Killed

TEXTS = [f"글 {i}번" for i in range(10)]


def test_parts_that_are_whole_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 4)
    made: list[Sequence[str]] = []

    def make(part: Sequence[str]) -> bytes:
        if len(made) == 2:
            made.append(part)
            raise Killed
        made.append(part)
        return "|".join(part).encode()

    with pytest.raises(Killed):
        list(in_parts(TEXTS, make, tmp_path, "a"))
    assert [len(part) for part in made] == [4, 4, 2]
    again = list(in_parts(TEXTS, make, tmp_path, "a"))
    assert len(made) == 4  # the last part alone
    assert again == [*in_parts(TEXTS, make, None, "a")]
    made.clear()
    list(
        in_parts(
            [*TEXTS[:5], "다른 글", *TEXTS[6:]], lambda p: made.append(p) or b"", tmp_path, "a"
        )
    )
    assert len(made) == 1  # the part with the other text
    list(in_parts(TEXTS, lambda p: made.append(p) or b"", tmp_path, "b"))
    assert len(made) == 4  # made by something else


def test_an_index_that_was_killed_is_the_same_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 3)
    passages = [Passage(str(i), (text, f"{i}째 줄이다.", "?!")) for i, text in enumerate(TEXTS)]
    calls = 0

    def killed(texts: Sequence[str]) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return pieces(texts)

    monkeypatch.setitem(lexical.TOKENISERS, "pieces", killed)
    with pytest.raises(Killed):
        Lexical.build(passages, ["pieces"], tmp_path)
    built = Lexical.build(passages, ["pieces"], tmp_path)
    assert calls == 4 + 7  # 3 of the 10 parts were there
    monkeypatch.undo()
    whole = Lexical.build(passages, ["pieces"])
    assert np.array_equal(built.scores("7번째 글"), whole.scores("7번째 글"))
