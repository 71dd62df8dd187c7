"""The table of base models, from what finished experiments measured."""

import pytest

from stages.rlhf.plan.compare_models import ORIGINAL, Run, markdown, table
from tests.conftest import naming
from tests.model_fixtures import shipped


def run(
    model: str, name: str, cosine: float, percent: float | None = 12.5, ruler: str = "0123456789"
) -> Run:
    sft = {
        "cosine": cosine,
        "euclidean_similarity": 0.4,
        "euclidean_distance": 1.5,
        "pearson": cosine,
    }
    gain = {"cosine": 0.1234, "percent": percent}
    return Run(name, model, {"embedder_sha256": ruler, "sft": sft, "sft_gain": gain})


def test_one_row_a_model_beside_the_originals_figures() -> None:
    found = table(
        [run("tiny", "one", 0.5), run("llama32-1b", "two", 0.8), run("tiny", "three", 0.6)]
    )
    assert found["model"].tolist() == ["llama32-1b", "tiny"]
    assert found["cosine"].tolist() == [0.8, 0.6], "the last of a model counts"
    lines = markdown(found).splitlines()
    assert lines[2] == (
        "| llama32-1b | two | 01234567 | 0.800 (0.764) | 0.400 (0.347) | 1.500 | 0.800 (0.764)"
        " | +0.1234 (+0.1304) | +12.50 % (+20.58 %) |"
    )
    assert lines[3].startswith("| tiny | three | 01234567 | 0.600 | 0.400 | 1.500 | 0.600 |")
    assert {line.count("|") for line in lines} == {10}


def test_rows_with_different_rulers_stand_apart() -> None:
    found = table([run("tiny", "one", 0.5), run("tiny", "two", 0.9, ruler="fedcba9876")])
    assert found["embedder"].tolist() == ["01234567", "fedcba98"]


def test_gain_that_cannot_be_told_is_a_dash() -> None:
    found = table([run("tiny", "one", 0.5, percent=None)])
    assert markdown(found).splitlines()[-1].endswith("| +0.1234 | – |")


def test_without_figures_it_says_so() -> None:
    with pytest.raises(ValueError, match=naming("metrics/evaluate.json")):
        table([])


def test_the_originals_models_are_those_of_params() -> None:
    assert set(ORIGINAL) <= set(shipped().models)
