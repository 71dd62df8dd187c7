"""Similarities against scipy and against values worked by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import distance
from scipy.stats import pearsonr

from stages.rlhf.model import similarity
from stages.rlhf.records import Response, SftRow
from stages.rlhf.report import comparison
from tests.conftest import naming

GENERATOR = np.random.default_rng(0)
A = GENERATOR.normal(size=(20, 7)).astype(np.float32)
B = GENERATOR.normal(loc=0.5, scale=3, size=(20, 7)).astype(np.float32)


def test_against_scipy() -> None:
    pairs = list(zip(A.astype(float), B.astype(float), strict=True))
    assert similarity.cosine(A, B) == pytest.approx([1 - distance.cosine(a, b) for a, b in pairs])
    expected = np.array([distance.euclidean(a, b) for a, b in pairs])
    assert similarity.euclidean_distance(A, B) == pytest.approx(expected)
    assert similarity.euclidean_similarity(A, B) == pytest.approx(1 / (1 + expected))
    assert similarity.pearson(A, B) == pytest.approx([pearsonr(a, b).statistic for a, b in pairs])


def test_by_hand() -> None:
    a, b = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    assert similarity.cosine(a, b) == pytest.approx([24 / 25])
    assert similarity.euclidean_distance(a, b) == pytest.approx([2**0.5])
    assert similarity.pearson(a, b) == pytest.approx([-1])


@pytest.fixture(scope="module")
def vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(10, 24) x 2: any direction, at 5 on equal, zero, opposite, nearly constant, far."""
    answers, references = GENERATOR.normal(size=(2, 10, 24)).astype(np.float32)
    answers[5], answers[6], answers[7] = references[5], 0, -references[7]
    answers[8] = 1 + 1e-3 * answers[8]
    answers[9] *= 1000
    return answers, references


def by_definition(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Every similarity of two vectors in plain Python; 0 where it divides by 0."""

    def cosine(x: Sequence[float], y: Sequence[float]) -> float:
        dot = norm_x = norm_y = 0.0
        for p, q in zip(x, y, strict=True):
            dot += p * q
            norm_x += p * p
            norm_y += q * q
        return dot / (math.sqrt(norm_x) * math.sqrt(norm_y)) if norm_x and norm_y else 0.0

    squares = 0.0
    for p, q in zip(a, b, strict=True):
        squares += (p - q) ** 2
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return {
        "cosine": cosine(a, b),
        "euclidean_distance": math.sqrt(squares),
        "euclidean_similarity": 1 / (1 + math.sqrt(squares)),
        "pearson": cosine([p - mean_a for p in a], [q - mean_b for q in b]),
    }


def test_what_evaluate_reports_is_the_definition(
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    a, b = (side.tolist() for side in vectors)
    rows = [SftRow(id=str(i), question="무엇인가요?", answer="답입니다.") for i in range(len(a))]
    answers = [Response("답입니다.", 3, ended=True)] * len(a)
    scores = [0.0] * len(a)
    reported = comparison.measure(answers, scores, scores, rows, *vectors).values
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        expected = by_definition(x, y)
        found = {name: reported[name].iloc[i] for name in expected}
        assert found == pytest.approx(expected, abs=1e-10), i
        if not any(x):  # an empty answer: scipy has no value
            assert (found["cosine"], found["pearson"]) == (0, 0)
            continue
        assert found["cosine"] == pytest.approx(1 - distance.cosine(x, y), abs=1e-10), i
        assert found["euclidean_distance"] == pytest.approx(distance.euclidean(x, y)), i
        assert found["pearson"] == pytest.approx(pearsonr(x, y).statistic, abs=1e-10), i
    assert reported["cosine"].iloc[[5, 6, 7]].tolist() == pytest.approx([1, 0, -1])
    assert reported["euclidean_similarity"].iloc[5] == 1
    assert reported["pearson"].iloc[[5, 6, 7]].tolist() == pytest.approx([1, 0, -1])


def test_euclid_sees_the_norm_and_cosine_does_not() -> None:
    assert similarity.cosine(A, 3 * A) == pytest.approx(np.ones(20))
    assert (similarity.euclidean_distance(A, 3 * A) > 1).all()


def test_equal_vectors_never_exceed_one() -> None:
    wide = GENERATOR.normal(size=(500, 256)).astype(np.float32)
    assert similarity.cosine(wide, wide).max() <= 1
    assert similarity.pearson(wide, wide) == pytest.approx(np.ones(500))


def test_zero_and_constant_vectors_are_finite() -> None:
    zero, ones = np.zeros((1, 4)), np.ones((1, 4))
    assert similarity.cosine(zero, ones) == 0
    assert similarity.pearson(ones, np.arange(4.0)[None]) == 0
    assert similarity.euclidean_similarity(zero, zero) == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=naming((20, 7), (19, 7))):
        similarity.cosine(A, B[1:])
