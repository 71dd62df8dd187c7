"""Order, ties, fusion; measures against scikit-learn's; indexes of two embedders do not mix."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from stages.rlhf.model.embedder import Embedder
from stages.rlhf.retrieval import dense
from stages.rlhf.retrieval.dense import Dense, unit
from stages.rlhf.retrieval.measures import measure
from stages.rlhf.retrieval.search import RRF_K, Scores, best, search
from tests.embedder_fixtures import static_embedder


class Fixed:
    """An index with the same scores for every question."""

    def __init__(self, *values: float) -> None:
        self.values: Scores = np.array(values, dtype=np.float32)

    def find(self, question: str, count: int) -> list[int]:
        """The best."""
        return best(self.values, count)


def test_the_best_come_first_and_of_equals_the_earlier() -> None:
    scores = Fixed(1, 3, 0, 3, 2, 1).values
    assert best(scores, 1) == [1]
    assert best(scores, 4) == [1, 3, 4, 0]
    assert best(scores, 99) == [1, 3, 4, 0, 5]  # nothing with a score of 0
    rng = np.random.default_rng(0)
    values = rng.integers(0, 30, 500).astype(np.float32)
    wanted = sorted(np.flatnonzero(values), key=lambda i: (-values[i], i))
    for count in (1, 7, 250):
        assert best(values, count) == wanted[:count]


def test_fusion_by_hand() -> None:
    one, other = Fixed(9, 8, 7, 0), Fixed(0, 2, 3, 1)
    # 1: 1/62 + 1/62; 2: 1/63 + 1/61; 0: 1/61; 3: 1/63
    assert 1 / (RRF_K + 3) + 1 / (RRF_K + 1) > 2 / (RRF_K + 2)
    assert search([one, other], "?", 4) == [2, 1, 0, 3]
    assert search([one], "?", 2) == [0, 1]


def test_measures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    count, passages = 40, 12
    found = [list(map(int, rng.permutation(passages))) for _ in range(count)]
    right = [set(map(int, rng.choice(passages, rng.integers(1, 4), False))) for _ in range(count)]
    values = measure([order[:10] for order in found], right)
    for i, (order, wanted) in enumerate(zip(found, right, strict=True)):
        truth = [[float(p in wanted) for p in range(passages)]]
        score = [[-float(order.index(p)) for p in range(passages)]]
        assert values["ndcg@10"][i] == pytest.approx(ndcg_score(truth, score, k=10))
        first = min(order.index(p) for p in wanted)
        assert values["mrr@10"][i] == pytest.approx(1 / (1 + first) if first < 10 else 0)
        assert values["hit@1"][i] == (first == 0)
        assert values["hit@5"][i] == (first < 5)
    assert measure([[3, 4]], [{5}])["mrr@10"] == [0]
    with pytest.raises(ValueError, match="without a right passage"):
        measure([[1]], [set()])


def test_dense_finds_by_cosine_and_knows_its_embedder(tmp_path: Path) -> None:
    model = Embedder(static_embedder())
    built = Dense.build(model, ["가나다", "abc", "123", ""], "a" * 64, tmp_path, None)
    assert built.find("가나다", 1) == [0]
    cosines = built.vectors @ built.vectors[1]
    assert built.find("abc", 9) == [i for i in np.argsort(-cosines) if cosines[i] > 0]
    assert np.linalg.norm(built.vectors, axis=1) == pytest.approx([1, 1, 1, 0])
    loaded = Dense.load(tmp_path, model, "a" * 64)
    assert np.array_equal(loaded.vectors, built.vectors)
    with pytest.raises(ValueError, match=r"made by the embedder aaaaaaaaaaaa, .* bbbbbbbbbbbb"):
        Dense.load(tmp_path, model, "b" * 64)
    with pytest.raises(ValueError, match=r"no dense\.json; no index here"):
        Dense.load(tmp_path / "none", model, "a" * 64)


def test_many_vectors_are_found_by_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EXACT", 1000)
    monkeypatch.setattr(dense, "TRAINED_ON", 8)
    model = Embedder(static_embedder(16))
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 12))) for _ in range(4000)]
    texts[100] = texts[3000] = texts[2000]
    built = Dense.build(model, texts, "a", tmp_path / "one", None)
    assert built.cells.ntotal == len(texts)
    exact, recalls = Dense(model, built.vectors), []
    for vector in built.vectors[::80]:
        wanted = exact.nearest(vector, 10)
        recalls.append(len({*built.nearest(vector, 10)} & {*wanted}) / 10)
    assert np.mean(recalls) > 0.7  # random vectors, cells trained on few
    assert built.nearest(built.vectors[7], 1) == [7]
    assert built.nearest(built.vectors[2000], 3) == [100, 2000, 3000]
    Dense.build(model, texts, "a", tmp_path / "other", None)
    one, other = ((tmp_path / name / dense.CELLS).read_bytes() for name in ("one", "other"))
    assert one == other
    (tmp_path / "one" / dense.CELLS).write_bytes(other[:-1])
    with pytest.raises(ValueError, match="damaged; build the index again"):
        Dense.load(tmp_path / "one", model, "a")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="which is not installed"):
        Dense.load(tmp_path / "other", model, "a")


def test_unit_keeps_directions() -> None:
    assert unit(np.array([[3, 4], [0, 0]], dtype=np.float32)).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0, 0],
    ]
