"""Evaluate: means, reasons, kinds and gain on made answers, and the files of its figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.rlhf import evaluation, evaluation_figures
from stages.rlhf.generation import Answer
from stages.rlhf.records import SftRow, write_metrics

KEYS = {
    "cosine",
    "euclidean_distance",
    "euclidean_similarity",
    "pearson",
    "chrf",
    "exact",
    "contains",
    "wrong_fact_rate",
    "eos_rate",
    "repetition",
    "copy_rate",
    "length",
}
KINDS = ["unseen_wording", "unseen_wording", "never_asked", None]
VALUES = ["1947m", "1708m", "1915m", "1567m"]
ROWS = [
    SftRow(
        id=str(i),
        question=f"{name}은 얼마나 높은가요?",
        answer=f"{name}의 높이는 {value}입니다.",
        must_contain=value,
        category="자연",
        kind=kind,
    )
    for i, (name, value, kind) in enumerate(
        zip(["한라산", "설악산", "지리산", "태백산"], VALUES, KINDS, strict=True)
    )
]
REFERENCES = np.eye(4, 6)


def measured(texts: list[str], mix: float, rows: list[SftRow] = ROWS) -> evaluation.Measured:
    """Answers whose embeddings are the references' with `mix` of a foreign direction."""
    vectors = REFERENCES[: len(rows)].copy()
    vectors[:, 5] = mix
    answers = [Answer(text, len(text), ended=text != "") for text in texts]
    scores = [float(i) for i in range(len(rows))]
    return evaluation.measure(answers, scores, rows, vectors, REFERENCES[: len(rows)])


@pytest.fixture
def models() -> dict[str, evaluation.Measured]:
    right = [row.answer for row in ROWS]
    return {
        "base": measured([ROWS[0].question, "", "네 네 네", "1947m입니다."], 2.0),
        "sft": measured([right[0], "모릅니다.", "1947m입니다.", right[3]], 1.0),
        "ppo": measured(right, 0.0),
    }


def test_blocks(models: dict[str, evaluation.Measured]) -> None:
    found = evaluation.report(models, ROWS)
    assert set(found) == {"questions", "base", "sft", "ppo", "sft_gain"}
    for name in models:
        assert set(found[name]) - {"by_kind"} - {f"{k}_reason" for k in KEYS} == KEYS
    base, sft, ppo = found["base"], found["sft"], found["ppo"]
    assert base["cosine"] == pytest.approx(1 / 5**0.5)
    assert base["euclidean_distance"] == pytest.approx(2)
    assert base["euclidean_similarity"] == pytest.approx(1 / 3)
    assert (base["eos_rate"], base["copy_rate"], base["repetition"]) == (0.75, 0.25, 0.25)
    assert base["wrong_fact_rate"] == 1  # the fourth alone commits, and wrongly
    assert (sft["exact"], sft["contains"]) == (0.5, 0.5)
    assert sft["wrong_fact_rate"] == pytest.approx(1 / 3)
    assert (ppo["exact"], ppo["chrf"], ppo["wrong_fact_rate"]) == (1, 100, 0)
    assert ppo["length"] == np.mean([len(row.answer) for row in ROWS])


def test_by_kind_leaves_out_rows_without_one(models: dict[str, evaluation.Measured]) -> None:
    by_kind = evaluation.report(models, ROWS)["sft"]["by_kind"]
    assert list(by_kind) == ["never_asked", "unseen_wording"]
    assert by_kind["unseen_wording"]["exact"] == 0.5
    assert by_kind["never_asked"]["wrong_fact_rate"] == 1


def test_gain(models: dict[str, evaluation.Measured]) -> None:
    gain = evaluation.report(models, ROWS)["sft_gain"]
    assert gain["cosine"] == pytest.approx(2**-0.5 - 5**-0.5)
    assert gain["percent"] == pytest.approx(100 * (2**-0.5 / 5**-0.5 - 1))
    # The seed's table: .0564 on .7426 is 7.59 %.
    assert evaluation.gain(0.7426, 0.799)["percent"] == pytest.approx(7.59, abs=0.01)
    nothing = evaluation.gain(-0.1, 0.5)
    assert nothing["percent"] is None
    assert "-0.1" in nothing["percent_reason"]
    assert nothing["cosine"] == pytest.approx(0.6)


def test_rows_without_phrase_or_kind(tmp_path: Path) -> None:
    rows = [SftRow(id=r.id, question=r.question, answer=r.answer) for r in ROWS]
    texts = ["", "가", "나", "다"]
    found = evaluation.report({n: measured(texts, 1, rows) for n in ("base", "sft", "ppo")}, rows)
    assert found["sft"]["contains"] is None
    assert "must_contain" in found["sft"]["contains_reason"]
    assert found["sft"]["wrong_fact_rate"] is None
    assert "by_kind" not in found["sft"]
    write_metrics(tmp_path / "evaluate.json", found)
    assert "NaN" not in (tmp_path / "evaluate.json").read_text(encoding="utf-8")


def test_no_answer_commits() -> None:
    found = evaluation.block(measured(["모릅니다."] * 4, 0).values)
    assert found["contains"] == 0
    assert found["wrong_fact_rate"] is None
    assert "commits" in found["wrong_fact_rate_reason"]


def test_numbers_must_agree() -> None:
    with pytest.raises(ValueError, match=r"differ in number: \[1, 4, 4, 4, 4\]"):
        evaluation.measure([Answer("가", 1, True)], [0.0] * 4, ROWS, REFERENCES, REFERENCES)


def test_sample_rows(models: dict[str, evaluation.Measured]) -> None:
    samples = evaluation.sample_rows(models, ROWS)
    assert len(samples) == 4
    assert samples[3]["question"] == ROWS[3].question
    assert samples[3]["reference"] == ROWS[3].answer
    assert samples[3]["base"] == {
        "answer": "1947m입니다.", "score": 3, "cosine": round(5**-0.5, 6)
    }  # fmt: skip
    assert "kind" not in samples[3]
    assert samples[2]["kind"] == "never_asked"


@pytest.mark.parametrize(
    ("count", "expected"), [(None, "abcdef"), (9, "abcdef"), (3, "ace"), (1, "a"), (4, "abde")]
)
def test_spread(count: int | None, expected: str) -> None:
    assert "".join(evaluation.spread("abcdef", count)) == expected


def draw(models: dict[str, Any], out: Path, samples: list[dict[str, Any]]) -> dict[str, bytes]:
    evaluation_figures.draw_all(models, samples, 3, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_figures(models: dict[str, evaluation.Measured], tmp_path: Path) -> None:
    samples = evaluation.sample_rows(models, ROWS)
    samples[0]["sft"]["answer"] = "세로줄 | 이 있고\n줄이 바뀌는 $긴$ 답변 " * 40
    files = draw(models, tmp_path / "one", samples)
    names = ["8_base_sft", "13_similarity", "14_length_similarity", "15_distributions"]
    expected = {f"{name}.{end}" for name in [*names, "16_samples"] for end in ("png", "csv")}
    assert set(files) == {*expected, "16_samples.md"}
    assert files == draw(models, tmp_path / "two", samples)
    assert all(len(data) < 300_000 for data in files.values())
    bins = pd.read_csv(tmp_path / "one" / "15_distributions.csv")
    sums = bins.groupby("metric")[["base", "sft", "ppo"]].sum().to_numpy()
    np.testing.assert_allclose(sums, 1, atol=1e-4)
    lines = files["16_samples.md"].decode().splitlines()
    assert len(lines) == 2 + 3
    assert {line.replace(r"\|", "").count("|") for line in lines} == {6}
    lengths = pd.read_csv(tmp_path / "one" / "14_length_similarity.csv")
    assert lengths.groupby("model")["answers"].sum().to_dict() == dict.fromkeys(models, 4)


def test_metrics_can_be_written(models: dict[str, evaluation.Measured], tmp_path: Path) -> None:
    found = evaluation.report(models, ROWS)
    write_metrics(tmp_path / "evaluate.json", found)
    read = json.loads((tmp_path / "evaluate.json").read_text(encoding="utf-8"))
    assert read["ppo"]["cosine"] == 1
