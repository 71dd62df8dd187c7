"""Stage gate: its figures are those of the responses it writes; it reads no ranks."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stages import gate
from stages.rlhf.model.store import load_base, save_card
from stages.rlhf.records import PromptRow, read_jsonl, write_jsonl
from stages.rlhf.reward.model import new_reward_model
from stages.rlhf.runs.closure import code_hashes
from tests.conftest import write_params
from tests.model_fixtures import LORA, random_reward_model, save_base, save_sft, sft_roles, shake
from tests.reward.test_gate import GOOD
from tests.tokenizer_fixtures import QUESTIONS

OPTIONS = (
    "--code code.json --base base --sft sft --rm rm --judge judge --judge-metrics judge.json"
    " --prompts prompts.jsonl --out out --metrics metrics/gate.json"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random base, SFT, reward model and judge, and prompts."""
    save_sft(save_base(tmp_path / "base"), tmp_path / "sft", "lora")
    random_reward_model(sft_roles(tmp_path, "lora")).save(tmp_path / "rm")
    save_card(tmp_path / "rm", "reward", {"base": tmp_path / "base", "sft": tmp_path / "sft"})
    bare = load_base(tmp_path / "base", "float32", LORA)
    judge = new_reward_model(bare, "hybrid", 1, "judge", kind="judge")
    shake(bare, judge.members[0].name, seed=7)
    judge.save(tmp_path / "judge")
    save_card(tmp_path / "judge", "judge", {"base": tmp_path / "base"})
    rows = [PromptRow(id=str(i), question=question) for i, question in enumerate(QUESTIONS)]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    changed = {"models.micro.max_answer_tokens": 8, "models.micro.lora.alpha": LORA.alpha}
    write_params(tmp_path, model="micro", threads=1, **changed, **{"gate.resamples": 50})
    (tmp_path / "code.json").write_text(json.dumps(code_hashes("gate")))
    write_judge(tmp_path, accuracy_above_length_ci_low=0.3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_judge(folder: Path, **changed: float) -> None:
    """metrics/details/judge.json of a good judge, or another one."""
    (folder / "judge.json").write_text(json.dumps({**GOOD, **changed}))


def run() -> str:
    """The stage; what it prints."""
    result = CliRunner().invoke(gate.main, OPTIONS.split())
    return result.output if result.exit_code == 0 else f"failed: {result.output}"


def test_figures_are_those_of_the_responses(folder: Path) -> None:
    assert not run().startswith("failed")
    found = json.loads((folder / "metrics" / "gate.json").read_text())["best_of_4"]
    rows = list(read_jsonl(folder / "out" / "samples.jsonl"))
    assert [row["question"] for row in rows] == QUESTIONS
    assert {len(row["answers"]) for row in rows} == {4}
    means = [sum(row["judge_scores"]) / 4 for row in rows]
    best = [row["judge_scores"][row["chosen"]] for row in rows]
    assert found["questions"] == len(rows)
    assert found["sft"] == pytest.approx(sum(means) / len(rows), abs=1e-3)
    assert found["best_of_4"] == pytest.approx(sum(best) / len(rows), abs=1e-3)
    rounding = 1e-5 * max(1.0, abs(found["sft"]), abs(found["best_of_4"]))  # six digits each
    assert found["gain"] == pytest.approx(found["best_of_4"] - found["sft"], abs=rounding)
    assert found["passed"] == (found["gain_ci_low"] > 0)
    assert any(row["chosen"] for row in rows), "always the first response"


def test_a_judge_at_chance_opens_nothing(folder: Path) -> None:
    write_judge(folder, accuracy_above_length_ci_low=-0.01)
    assert run().startswith("gate: unknown: the judge is not shown to be better")
    found = json.loads((folder / "metrics" / "gate.json").read_text())["best_of_4"]
    assert found["passed"] is None
    assert found["passed_reason"].startswith("the judge is not shown to be better")
    assert isinstance(found["gain"], float)


def test_models_of_other_parents_are_refused(folder: Path) -> None:
    save_base(folder / "base", seed=5)
    assert "base_sha256" in run()
