"""BM25 against its formula; sentences within passages; what is saved is what is loaded."""

import math
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from stages.rlhf.retrieval.lexical import K1, WEIGHTS, B, Lexical
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.retrieval.search import best
from stages.rlhf.retrieval.tokens import TOKENISERS, Name, morphemes, pieces, topic

PASSAGES = [
    Passage("a", ("한라산은 제주도에 있다.", "높이는 1947미터이다.")),
    Passage("b", ("설악산은 강원도에 있다.", "높이는 1708미터이다.", "단풍이 곱다.")),
    Passage("c", ("제주도는 섬이다.",)),
]
BOTH: tuple[Name, Name] = ("pieces", "morphemes")


def bm25(texts: list[list[str]], question: list[str]) -> list[float]:
    """Robertson's, with the idf of Lucene, word by word."""
    mean = sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        counts, score = Counter(text), 0.0
        for word in question:
            holders = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
            norm = K1 * (1 - B + B * len(text) / mean)
            score += idf * counts[word] / (counts[word] + norm)
        found.append(score)
    return found


def expected(name: Name, question: str) -> list[float]:
    """A passage's own score, and that of its best sentence."""
    (words,) = TOKENISERS[name]([topic(question)])
    sentences = [[*TOKENISERS[name](p.sentences)] for p in PASSAGES]
    whole = bm25([[*chain(*own)] for own in sentences], words)
    alone = iter(bm25([*chain(*sentences)], words))
    both = (w + max(next(alone) for _ in own) for w, own in zip(whole, sentences, strict=True))
    return [WEIGHTS[name] * score for score in both]


@pytest.mark.parametrize("question", ["한라산의 높이는?", "제주도의 단풍", "1708미터"])
def test_scores_are_those_of_the_formula(question: str) -> None:
    found = Lexical.build(PASSAGES, BOTH).scores(question)
    wanted = [sum(pair) for pair in zip(*(expected(n, question) for n in BOTH), strict=True)]
    assert found == pytest.approx(wanted, rel=1e-5)
    one = Lexical.build(PASSAGES, ["pieces"]).scores(question)
    assert one == pytest.approx(expected("pieces", question), rel=1e-5)


def test_the_sentence_decides_where_passages_share_the_words() -> None:
    near = Passage("a", ("한라산의 높이는 1947미터이다.", "섬은 제주도이다."))
    far = Passage("b", ("한라산은 섬에 있다.", "제주도이다.", "다른 산의 높이는 모른다."))
    assert best(Lexical.build([far, near], BOTH).scores("한라산의 높이"), 1) == [1]


def test_a_question_that_shares_nothing_finds_nothing() -> None:
    index = Lexical.build(PASSAGES, BOTH)
    assert best(index.scores("Ångström?!"), 3) == []
    assert best(index.scores(""), 3) == []


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    for passages in (PASSAGES, PASSAGES[2:]):  # of several sentences, of one each
        built = Lexical.build(passages, BOTH)
        built.save(tmp_path / str(len(passages)))
        loaded = Lexical.load(tmp_path / str(len(passages)))
        assert np.array_equal(loaded.scores("제주도의 높이"), built.scores("제주도의 높이"))
    assert not any(p.suffix in (".pkl", ".pickle", ".pt") for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"no lexical\.json; no index here"):
        Lexical.load(tmp_path)


def test_a_corpus_without_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="no passage to index"):
        Lexical.build([], BOTH)
    with pytest.raises(ValueError, match="no word to index"):
        Lexical.build([Passage("a", ("!?",))], BOTH)


def test_tokens_by_hand() -> None:
    assert [*pieces(["한라산은 높이 1947m, H2O는 물", "?"])] == [
        ["한라", "라산", "산은", "높이", "19", "94", "47", "m", "h", "2", "o", "는", "물"],
        [],
    ]
    one, _ = morphemes(["한라산의 높이는 얼마입니까?", "은는이가?!"])
    assert {"한라산/N", "높이/N"} <= set(one)
    assert not {"의/J", "는/J", "?/S"} & set(one)
    assert len(one) == 3  # 얼마
