"""The real run: its settings load, its figures are by hand, and each model is held against SFT."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.rlhf.config.whole import load_params
from stages.rlhf.records import read_jsonl
from stages.rlhf.report import comparison
from tests.benchmarks import real
from tests.benchmarks.experiments import slug
from tests.conftest import write_params

BOOT = comparison.Bootstrap(200, 0)
Chain = tuple[Path, dict[str, set[str]]]  # conftest's micro_chain


def test_settings_are_params_that_load(tmp_path: Path) -> None:
    changed = real.settings(tmp_path / "rows", tmp_path / "gemma", 1)
    plain = {key.removeprefix("stages/models.yaml:"): value for key, value in changed.items()}
    params = load_params(write_params(tmp_path, **plain))
    assert (params.model, params.seed, params.data.source) == ("gemma3-270m", 1, "aihub")
    assert (params.base_model.hub, params.base_model.path) == (None, tmp_path / "gemma")
    assert params.rm.head == "scalar"
    assert slug("real", "seed 0", changed) == "real-seed-0"


def test_a_model_is_held_against_sft_question_by_question() -> None:
    sft = pd.DataFrame(
        {"answer": ["가", "나", "다", "라"], "cosine": [0.1, 0.2, 0.3, 0.4], "judged": [0.0] * 4}
    )
    ours = pd.DataFrame(
        {"answer": ["가 ", "마", "바", "사"], "cosine": [0.1, 0.3, 0.5, 0.3]}
    ).assign(judged=[9.0, 1.0, -1.0, 2.0])
    found = real.against(ours, sft, BOOT)
    assert found["same_as_sft"] == 1  # up to spaces
    assert found["cosine_gain"] == pytest.approx((0 + 0.1 + 0.2 - 0.1) / 4)
    assert found["judged_gain"] == pytest.approx((9 + 1 - 1 + 2) / 4)
    assert found["win_rate_decided"] == pytest.approx(2 / 3)
    assert found["win_rate"] == pytest.approx((0.5 + 2) / 4)


def test_rows_are_those_of_the_run(
    micro_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(micro_chain[0], tmp_path / "run")
    monkeypatch.chdir(folder)
    without = [row["model"] for row in real.rows_of_run(5)]
    assert without == [m for m in (*real.MODELS, *real.RANKERS) if m != real.DEMONSTRATIONS]
    # a rank-1 phase that changes nothing
    shutil.copytree(folder / "data" / "sft", folder / real.DEMONSTRATIONS / "data" / "sft")
    rows = pd.DataFrame(real.rows_of_run(5)).set_index("model")
    evaluate = json.loads((folder / "metrics/details/evaluate.json").read_text())
    rm = json.loads((folder / "metrics/details/rm.json").read_text())
    assert list(rows.index) == [*real.MODELS, *real.RANKERS]
    assert set(rows.seed) == {5}
    for model in ("base", "sft", "best_of_n", "ppo"):
        for key in real.ANSWERS:
            value = evaluate[model][key]  # None where no answer has what it measures
            expected = np.nan if value is None else value
            assert rows.loc[model, key] == pytest.approx(expected, nan_ok=True)
    gain = evaluate["ppo_vs_sft"]
    for key in ("cosine_gain", "cosine_gain_ci_low"):
        assert rows.loc["ppo", key] == pytest.approx(gain[key], abs=1e-6)
    assert rows.loc["rm", "accuracy_ci_high"] == rm["accuracy_ci_high"]
    same = rows.loc[real.DEMONSTRATIONS]
    assert same["same_as_sft"] == same["questions"]
    assert same["cosine"] == pytest.approx(rows.loc["sft", "cosine"], abs=1e-6)
    assert same["win_rate"] == 0.5
    samples = [*read_jsonl(folder / real.SAMPLES)]
    judged = np.mean([s["base"]["judged"] - s["sft"]["judged"] for s in samples])
    assert rows.loc["base", "judged_gain"] == pytest.approx(judged)


def test_a_table_keeps_the_rows_of_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "metrics" / "tables"
    tables.mkdir(parents=True)
    monkeypatch.setattr(real, "ROOT", tmp_path)
    real.write([{"model": "sft", "seed": 0, "cosine": 0.25}])
    real.write([{"model": "sft", "seed": 1, "cosine": 0.5, "eos_rate": 1.0}])
    real.write([{"model": "sft", "seed": 1, "cosine": 0.75, "eos_rate": 0.5}])
    found = pd.read_csv(tables / "real.csv")
    assert found.seed.tolist() == [0, 1]
    assert found.cosine.tolist() == [0.25, 0.75]
    assert found.eos_rate.isna().tolist() == [True, False]


def test_length_is_measured_on_the_scores_that_ppo_follows() -> None:
    block = {"accuracy": 0.7, "length_corrected": {"accuracy": 0.6, "accuracy_ci_low": 0.5}}
    found = real.ranking(block)
    assert (found["accuracy"], found["corrected_accuracy"]) == (0.7, 0.6)
    assert found["corrected_accuracy_ci_low"] == 0.5
    assert real.ranking({"accuracy": 0.7})["corrected_accuracy"] is None  # the judge has no curve
