"""The table of base models, from rows as dvc.api.exp_show gives them."""

from typing import Any

import pytest

from stages.rlhf.plan.compare_models import METRICS, ORIGINAL, markdown, table, value
from tests.conftest import naming
from tests.model_fixtures import shipped


def row(model: str, name: str, cosine: float | None, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "Experiment": name,
        "State": "Success",
        "embedder_sha256": "0123456789abcdef",
        "sft.cosine": cosine,
        "sft.euclidean_similarity": 0.4,
        "sft.euclidean_distance": 1.5,
        "sft.pearson": cosine,
        "sft_gain.cosine": 0.1234,
        "sft_gain.percent": 12.5,
        **more,
    }


def test_one_row_a_model_beside_the_originals_figures() -> None:
    rows = [
        row("tiny", "one", 0.5),
        row("llama32-1b", "two", 0.8),
        row("tiny", "three", 0.6),
        row("gemma2-2b", "failed", 0.9, State="Failed"),
        row("gemma2-2b", "queued", None),
    ]
    found = table(rows)
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
    rows = [row("tiny", "one", 0.5), row("tiny", "two", 0.9, embedder_sha256="fedcba98")]
    assert table(rows)["embedder"].tolist() == ["01234567", "fedcba98"]


def test_a_metric_is_found_with_and_without_its_file() -> None:
    assert (
        value({"metrics/evaluate.json:sft.cosine": 1, "sft.cosine": 2}, METRICS, "sft.cosine") == 1
    )
    assert value({"sft.cosine": 2}, METRICS, "sft.cosine") == 2


def test_gain_that_cannot_be_told_is_a_dash() -> None:
    found = table([row("tiny", "one", 0.5, **{"sft_gain.percent": None})])
    assert markdown(found).splitlines()[-1].endswith("| +0.1234 | – |")


def test_without_figures_it_says_so() -> None:
    with pytest.raises(ValueError, match=naming("metrics/evaluate.json")):
        table([row("tiny", "queued", None)])


def test_the_originals_models_are_those_of_params() -> None:
    assert set(ORIGINAL) <= set(shipped().models)
