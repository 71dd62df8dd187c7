"""The model card: front matter that the hub reads, and figures that the run has measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.rlhf.bot.model_card import card
from tests.bot_fixtures import write_run
from tests.model_fixtures import tiny_llama
from tests.tokenizer_fixtures import tiny_tokenizer


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest."""
    _, front, rest = text.split("---\n", 2)
    return YAML(typ="safe").load(front), rest


def made(folder: Path, name: str = "ppo") -> tuple[dict[str, Any], str]:
    where = folder / "data", folder / "metrics", folder / "dvc.lock"
    return parts(card(name, *where, "micro", "bfloat16"))


def write_metrics(folder: Path) -> None:
    (folder / "metrics" / "details").mkdir(parents=True)
    (folder / "metrics" / "runtime" / "runs").mkdir(parents=True)
    block = {"chrf": 12.0, "chrf_ci_low": 11.0, "chrf_ci_high": 13.25, "exact": None}
    pair = {
        "win_rate_decided": 0.6,
        "win_rate_decided_ci_low": 0.5,
        "win_rate_decided_ci_high": 0.7,
    }
    evaluate = {"sft": block, "ppo": {**block, "chrf": 12.5}, "ppo_vs_sft": pair}
    (folder / "metrics" / "details" / "evaluate.json").write_text(json.dumps(evaluate))
    rm = {"accuracy": 0.7, "length_only_accuracy": 0.55}
    (folder / "metrics" / "details" / "rm.json").write_text(json.dumps(rm))
    ran = {"commit": "abc"}
    (folder / "metrics" / "runtime" / "runs" / "ppo.json").write_text(json.dumps(ran))
    run = {"fingerprint": "f1", "inputs": {"rm": "r1"}, "packages": {"torch": "2"}, "params": {}}
    (folder / "data" / "ppo" / "run.json").write_text(json.dumps(run))


def test_of_a_hub_model_it_names_base_relation_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch, twin=(tiny_tokenizer(), tiny_llama))
    front, text = made(tmp_path)
    assert front["base_model"] == "org/twin"
    assert front["base_model_relation"] == "finetune"
    assert front["license_link"] == "https://huggingface.co/org/twin"
    assert front["language"] == ["ko"]
    assert "0123456789abcdef0123456789abcdef01234567" in text
    assert "How good" not in text, "nothing has been measured"


def test_of_a_model_made_here_it_claims_no_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch)
    front, text = made(tmp_path)
    assert not {"base_model", "license"} & set(front)
    assert "None is given" in text


@pytest.mark.parametrize(("dtype", "said"), [("nf4", 1), ("bfloat16", 0)])
def test_of_an_adapter_on_4_bit_weights_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, said: int
) -> None:
    write_run(tmp_path, monkeypatch)
    run = {"params": {"models.${model}.dtype": dtype}}
    (tmp_path / "data" / "ppo" / "run.json").write_text(json.dumps(run))
    assert made(tmp_path)[1].count("trained on: `in 4 bits (nf4), dequantised`") == said


def test_figures_have_intervals_and_what_was_not_measured_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch)
    write_metrics(tmp_path)
    (tmp_path / "dvc.lock").write_text("lock")
    text = made(tmp_path)[1]
    assert "| chrF | 12.500 [11.000, 13.250] |" in text
    assert "equal to the reference" not in text
    assert "0.600 [0.500, 0.700]" in text
    for fact in ("git commit: `abc`", "run: `f1`", "rm, sha256: `r1`", "torch: `2`", "`bfloat16`"):
        assert fact in text
    assert "dvc.lock, sha256" in text
    sft = made(tmp_path, "sft")[1]
    assert "| chrF | 12.000 [11.000, 13.250] |" in sft
    assert "0.600" not in sft, "the judge's verdict is on PPO"
    front, rm = made(tmp_path, "rm")
    assert front["pipeline_tag"] == "text-classification"
    assert "| the same by length alone | 0.550 |" in rm
