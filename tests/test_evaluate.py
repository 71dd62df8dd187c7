"""Evaluate: means, reasons, kinds and gain on made answers, and the files of its figures."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.rlhf.records import Response, SftRow, write_metrics
from stages.rlhf.report import comparison, comparison_figures, figures
from tests.conftest import naming
from tests.model_fixtures import shipped

KEYS = {
    "cosine",
    "euclidean_distance",
    "euclidean_similarity",
    "pearson",
    "chrf",
    "chrf_plus_plus",
    "exact",
    "contains",
    "wrong_fact_rate",
    "eos_rate",
    "repetition",
    "copy_rate",
    "length",
    "polite_rate",
    "level_consistency",
    "non_hangul_share",
    "broken_rate",
    "truncation_rate",
    "distinct_1",
    "distinct_2",
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
BOOTSTRAP = comparison.Bootstrap(200, 0)


def report(models: dict[str, comparison.Measured], rows: list[SftRow] = ROWS) -> dict[str, Any]:
    return comparison.report(models, rows, 1.0, BOOTSTRAP)


def measured(texts: list[str], mix: float, rows: list[SftRow] = ROWS) -> comparison.Measured:
    """Answers whose embeddings are the references' with `mix` of a foreign direction."""
    vectors = REFERENCES[: len(rows)].copy()
    vectors[:, 5] = mix
    answers = [Response(text, len(text), ended=text != "") for text in texts]
    scores = [float(i) for i in range(len(rows))]
    judged = [mix * i for i in range(len(rows))]
    return comparison.measure(answers, scores, judged, rows, vectors, REFERENCES[: len(rows)])


@pytest.fixture
def models() -> dict[str, comparison.Measured]:
    right = [row.answer for row in ROWS]
    return {
        "base": measured([ROWS[0].question, "", "네 네 네", "1947m입니다."], 2.0),
        "sft": measured([right[0], "모릅니다.", "1947m입니다.", right[3]], 1.0),
        "ppo": measured(right, 0.0),
    }


def test_blocks(models: dict[str, comparison.Measured]) -> None:
    found = report(models)
    assert set(found) == {"questions", "base", "sft", "ppo", "sft_gain", "ppo_vs_sft"}
    beside = {
        f"{k}_{end}" for k in KEYS for end in ("reason", "ci_low", "ci_high", "ci_low_reason")
    }
    for name in models:
        assert set(found[name]) - {"by_kind"} - beside == KEYS
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
    # base: its one question, nothing, 네 네 네, and one sentence with an ending
    assert (base["polite_rate"], base["truncation_rate"], base["broken_rate"]) == (1, 0.5, 0)
    assert sft["level_consistency"] is None
    assert "sentences" in sft["level_consistency_reason"]
    assert ppo["polite_rate"] == 1
    words = [answer.text.split() for answer in models["ppo"].responses]
    assert ppo["distinct_1"] == len({w for ws in words for w in ws}) / sum(map(len, words))
    assert base["by_kind"]["unseen_wording"]["distinct_1"] == 1


def test_by_kind_leaves_out_rows_without_one(models: dict[str, comparison.Measured]) -> None:
    by_kind = report(models)["sft"]["by_kind"]
    assert list(by_kind) == ["never_asked", "unseen_wording"]
    assert by_kind["unseen_wording"]["exact"] == 0.5
    assert by_kind["never_asked"]["wrong_fact_rate"] == 1


def test_gain(models: dict[str, comparison.Measured]) -> None:
    gain = report(models)["sft_gain"]
    assert gain["cosine"] == pytest.approx(2**-0.5 - 5**-0.5)
    assert gain["percent"] == pytest.approx(100 * (2**-0.5 / 5**-0.5 - 1))
    # The seed's table: .0564 on .7426 is 7.59 %.
    assert comparison.gain(0.7426, 0.799)["percent"] == pytest.approx(7.59, abs=0.01)
    nothing = comparison.gain(-0.1, 0.5)
    assert nothing["percent"] is None
    assert "-0.1" in nothing["percent_reason"]
    assert nothing["cosine"] == pytest.approx(0.6)


def test_rows_without_phrase_or_kind(tmp_path: Path) -> None:
    rows = [SftRow(id=r.id, question=r.question, answer=r.answer) for r in ROWS]
    texts = ["", "가", "나", "다"]
    found = report({n: measured(texts, 1, rows) for n in ("base", "sft", "ppo")}, rows)
    assert found["sft"]["contains"] is None
    assert "must_contain" in found["sft"]["contains_reason"]
    assert found["sft"]["wrong_fact_rate"] is None
    assert "by_kind" not in found["sft"]
    write_metrics(tmp_path / "evaluate.json", found)
    assert "NaN" not in (tmp_path / "evaluate.json").read_text(encoding="utf-8")


def test_no_answer_commits() -> None:
    found = comparison.block(measured(["모릅니다."] * 4, 0).values, BOOTSTRAP)
    assert found["contains"] == 0
    assert found["wrong_fact_rate"] is None
    assert "commits" in found["wrong_fact_rate_reason"]


def test_numbers_must_agree() -> None:
    with pytest.raises(ValueError, match=naming([1, 4, 4, 4, 4, 4])):
        comparison.measure(
            [Response("가", 1, True)], [0.0] * 4, [0.0] * 4, ROWS, REFERENCES, REFERENCES
        )


def test_sample_rows(models: dict[str, comparison.Measured]) -> None:
    samples = comparison.sample_rows(models, ROWS)
    assert len(samples) == 4
    assert samples[3]["question"] == ROWS[3].question
    assert samples[3]["reference"] == ROWS[3].answer
    assert samples[3]["base"] == {
        "answer": "1947m입니다.", "score": 3, "judged": 6, "cosine": round(5**-0.5, 6)
    }  # fmt: skip
    assert "kind" not in samples[3]
    assert samples[2]["kind"] == "never_asked"


def test_intervals_stand_beside_the_means(models: dict[str, comparison.Measured]) -> None:
    sft = report(models)["sft"]
    assert sft["exact_ci_low"] < sft["exact"] < sft["exact_ci_high"]
    assert sft["cosine_ci_low"] == pytest.approx(sft["cosine"])  # the same for all
    assert sft == report(models)["sft"]
    none = comparison.report(models, ROWS, 1.0, comparison.Bootstrap(0, 0))["sft"]
    assert not [key for key in none if "_ci_" in key]


def test_ppo_against_sft_is_paired(models: dict[str, comparison.Measured]) -> None:
    found = report(models)["ppo_vs_sft"]
    # ppo and sft say the same to the first and the last; the judge gives ppo 0, sft 0, 1, 2, 3
    assert found["ties"] == 2
    assert found["win_rate"] == 0.25
    assert found["win_rate_decided"] == 0
    assert found["exact_gain"] == 0.5
    assert found["chrf_gain"] == pytest.approx(
        report(models)["ppo"]["chrf"] - report(models)["sft"]["chrf"]
    )
    assert 0 < found["win_rate_length_controlled"] < 0.5
    assert found["chrf_win_rate_decided"] == 1
    assert found["judge_agreement"] == 0
    fonder = {**models, "ppo": replace(models["ppo"], judge_scores=[0.0, 9.0, 0.0, 0.0])}
    assert report(fonder)["ppo_vs_sft"]["judge_agreement"] == 0.5
    assert report(fonder)["ppo_vs_sft"]["chrf_win_rate_decided"] == 1
    assert set(found["by_kind"]) == {"unseen_wording", "never_asked"}
    assert found["by_kind"]["never_asked"]["win_rate_decided"] == 0
    # the judge's temperature tells how sure it is
    unsure = comparison.report(models, ROWS, 100.0, BOOTSTRAP)["ppo_vs_sft"]
    assert 0.45 < unsure["win_rate_length_controlled"] < 0.5
    assert unsure["win_rate"] == found["win_rate"]


def test_a_judge_at_chance_gives_no_win_rates(models: dict[str, comparison.Measured]) -> None:
    report = comparison.report(models, ROWS, 1.0, BOOTSTRAP)["ppo_vs_sft"]
    found = comparison.report(models, ROWS, 1.0, BOOTSTRAP, "at chance")["ppo_vs_sft"]
    for name in ("win_rate", "win_rate_decided", "win_rate_length_controlled"):
        assert found[name] is None
        assert found[f"{name}_reason"] == "at chance"
        assert f"{name}_ci_low" not in found
    others = {name for name in report if not name.startswith(("win_rate", "by_kind"))}
    assert {name: found[name] for name in others} == {name: report[name] for name in others}


def test_an_unknown_gate_is_told_as_such() -> None:
    verdicts = comparison.gates(GOOD, 37.0, shipped().limits, None, True, "at chance")
    assert verdicts["rm_ok"] is None
    assert verdicts["rm_ok_reason"] == "at chance"
    assert comparison.gates_that(verdicts, None) == ["rm_ok"]
    line = comparison.gates_line({**verdicts, "ends": False})
    assert line == "gates that failed: ends; unknown: rm_ok (at chance)"
    verdicts = comparison.gates(GOOD, 37.0, shipped().limits, True, True)
    assert set(verdicts.values()) == {True}
    assert comparison.gates_line(verdicts) == "gates that failed: none"


GOOD: dict[str, Any] = {
    "ppo": {"repetition": 0.01, "copy_rate": 0.0, "eos_rate": 0.995, "length": 38.0},
    "sft": {"repetition": 0.01, "copy_rate": 0.0, "eos_rate": 0.99, "length": 36.0},
    "ppo_vs_sft": {
        "cosine_gain_ci_low": 0.01,
        "cosine_gain_ci_high": 0.03,
        "win_rate_decided_ci_low": 0.51,
        "win_rate_decided_ci_high": 0.7,
    },
}


def gates(
    ok: bool | None = True, known: bool = True, **changed: dict[str, float | None]
) -> list[str]:
    """The gates that fail, of the figures above with some changed."""
    found = {name: {**part, **changed.get(name, {})} for name, part in GOOD.items()}
    return comparison.gates_that(
        comparison.gates(found, 37.0, shipped().limits, ok, known, "at chance"), False
    )


def test_each_gate_fails_by_itself() -> None:
    assert gates() == []
    assert gates(ppo={"repetition": 0.016}) == ["no_repetition"]
    assert gates(ppo={"repetition": 0.0149}) == []
    assert gates(ppo={"copy_rate": 0.006}) == ["no_repetition"]
    assert gates(ppo={"eos_rate": 0.98}) == ["ends"]
    assert (
        gates(ppo={"length": 37 * 1.16}) == gates(ppo={"length": 37 * 0.84}) == ["length_in_band"]
    )
    assert gates(ok=False) == ["rm_ok"]
    assert gates(ok=None) == []


@pytest.mark.parametrize(
    ("cosine", "rate", "passes"),
    [
        ((0.01, 0.03), (0.51, 0.7), True),
        ((0.01, 0.03), (0.4, 0.6), True),
        ((-0.01, 0.03), (0.51, 0.7), True),
        ((-0.01, 0.03), (0.4, 0.6), False),
        ((0.0, 0.03), (0.5, 0.6), False),
        ((0.01, 0.03), (0.3, 0.49), False),  # clearly better by one, clearly worse by the other
        ((-0.03, -0.01), (0.51, 0.7), False),
        ((0.01, 0.03), None, True),  # a judge at chance says nothing
        ((-0.01, 0.03), None, False),
        (None, None, False),
    ],
)
def test_ppo_beats_sft_by_what_has_not_chosen_it(
    cosine: tuple[float, float] | None, rate: tuple[float, float] | None, passes: bool
) -> None:
    pair: dict[str, float | None] = {"chrf_gain_ci_low": -9.0, "chrf_gain_ci_high": -8.0}
    for name, ends in (("cosine_gain", cosine), ("win_rate_decided", rate)):
        low, high = ends or (None, None)
        pair |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
    assert gates(ppo_vs_sft=pair) == ([] if passes else ["ppo_beats_sft"])


def test_on_real_data_ppo_need_only_end_as_often_as_sft() -> None:
    low = {"eos_rate": 0.7}
    assert gates(ppo=low, sft={"eos_rate": 0.7}, known=True) == ["ends"]
    assert gates(ppo=low, sft={"eos_rate": 0.7}, known=False) == []
    assert gates(ppo=low, sft={"eos_rate": 0.7049}, known=False) == []  # within limits.eos_slack
    assert gates(ppo=low, sft={"eos_rate": 0.7051}, known=False) == ["ends"]
    assert gates(ppo={"eos_rate": 0.99}, sft={"eos_rate": 1.0}, known=False) == []


@pytest.mark.parametrize(
    ("count", "expected"), [(None, "abcdef"), (9, "abcdef"), (3, "ace"), (1, "a"), (4, "abde")]
)
def test_spread(count: int | None, expected: str) -> None:
    assert "".join(comparison.spread("abcdef", count)) == expected


def draw(models: dict[str, Any], out: Path, samples: list[dict[str, Any]]) -> dict[str, bytes]:
    comparison_figures.draw_all(models, samples, 3, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_figures(models: dict[str, comparison.Measured], tmp_path: Path) -> None:
    samples = comparison.sample_rows(models, ROWS)
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


def test_the_figure_of_samples_has_as_many_rows_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(map(chr, range(0xAC00, 0xAC00 + 40)))
    samples = [{"question": text, "reference": text, "sft": {"answer": text}}] * 12
    drawn: list[int] = []
    figure = comparison_figures._sample_figure

    def counted(header: list[str], rows: Sequence[list[str]]) -> Figure:
        drawn.append(len(rows))
        return figure(header, rows)

    monkeypatch.setattr(comparison_figures, "_sample_figure", counted)
    monkeypatch.setattr(figures, "MAX_BYTES", 30_000)
    monkeypatch.setattr(figures, "MIN_DPI", figures.DPI)
    comparison_figures.draw_samples(samples, ["sft"], 12, tmp_path / "16_samples")
    assert drawn[:2] == [12, 9]
    assert 1 <= drawn[-1] < 12
    assert (tmp_path / "16_samples.png").stat().st_size <= 30_000
    assert len(pd.read_csv(tmp_path / "16_samples.csv")) == 12
    monkeypatch.setattr(figures, "MAX_BYTES", 1_000)
    with pytest.raises(ValueError, match=naming("16_samples.png", 1_000)):
        comparison_figures.draw_samples(samples, ["sft"], 12, tmp_path / "16_samples")
    assert drawn[-1] == 1


def test_metrics_can_be_written(models: dict[str, comparison.Measured], tmp_path: Path) -> None:
    found = report(models)
    write_metrics(tmp_path / "evaluate.json", found)
    read = json.loads((tmp_path / "evaluate.json").read_text(encoding="utf-8"))
    assert read["ppo"]["cosine"] == 1
