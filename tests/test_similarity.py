"""Similarities against scipy and against values worked by hand."""

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.stats import pearsonr

from stages.rlhf import similarity

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
    with pytest.raises(ValueError, match=r"\(20, 7\), \(19, 7\)"):
        similarity.cosine(A, B[1:])
