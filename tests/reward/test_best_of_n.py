"""Best-of-n samples, and the gate's arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.model.generation import draw_uniforms, generate_all
from stages.rlhf.reward.best_of_n import gate, gate_failure, sample
from tests.conftest import naming
from tests.model_fixtures import sft_roles
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer


def test_answers_differ_by_their_place_and_not_by_their_batch(tmp_path: Path) -> None:
    codec, roles = Codec(tiny_tokenizer()), sft_roles(tmp_path, "full")
    prompts = [codec.prompt_ids(question) for question in QUESTIONS]
    with roles.use(None) as model:
        found = sample(model, prompts, 3, codec, 8, 64, 1.0, "seed")
        again = sample(model, prompts, 3, codec, 8, 5, 1.0, "seed")
        other = sample(model, prompts, 3, codec, 8, 64, 1.0, "other")
        draws = draw_uniforms(24, 8, "seed")
        repeated = [prompt for prompt in prompts for _ in range(3)]
        said = generate_all(model, repeated, codec, 8, 24, 1.0, draws)
    assert found == again != other
    assert [answer for _, answers in found for answer in answers] == said
    assert [prompt for prompt, _ in found] == prompts
    assert {len(answers) for _, answers in found} == {3}
    assert any(len({tuple(a) for a in answers}) > 1 for _, answers in found)


def test_the_gate_by_hand() -> None:
    judged = torch.tensor([[1.0, 3.0], [0.0, 2.0], [5.0, 1.0]])
    found = gate(judged, torch.tensor([1, 1, 0]), 200, 0)
    assert found["sft"] == pytest.approx(2.0)
    assert found["best_of_2"] == pytest.approx(10 / 3)
    assert found["gain"] == pytest.approx(4 / 3)
    assert found["gain_ci_low"] == pytest.approx(1.0)  # no question gains less
    assert found["gain_ci_high"] == pytest.approx(2.0)
    assert found["passed"] is True
    assert gate(judged, torch.tensor([0, 0, 1]), 200, 0)["passed"] is False


def test_chance_does_not_open_the_gate_and_a_signal_does() -> None:
    generator = torch.Generator().manual_seed(0)
    judged = torch.randn(100, 4, generator=generator)
    opened = []
    for seed in range(40):
        blind = torch.randint(4, (100,), generator=torch.Generator().manual_seed(seed))
        opened.append(gate(judged, blind, 200, seed)["passed"])
    assert sum(opened) <= 4  # 1 in 40 by the level of the interval
    weak = (judged + 3 * torch.randn(100, 4, generator=generator)).argmax(-1)
    found = gate(judged, weak, 500, 0)
    assert found["passed"]
    assert 0 < found["gain_ci_low"] < found["gain"] < found["gain_ci_high"]
    assert found["gain"] == pytest.approx(found["best_of_4"] - found["sft"])


def test_one_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=naming(1, 2)):
        gate(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), 10, 0)


def write_gate(folder: Path, **gate: Any) -> Path:
    file = folder / "judge.json"
    file.write_text(json.dumps({"gate": {"best_of_4": gate}}))
    return file


def test_the_gate_is_read_from_the_judges_metrics(tmp_path: Path) -> None:
    figures = {"gain": 0.05, "gain_ci_low": -0.1, "gain_ci_high": 0.2}
    assert gate_failure(write_gate(tmp_path, passed=True, **figures)) is None
    reason = gate_failure(write_gate(tmp_path, passed=False, **figures))
    assert reason is not None
    assert "+0.050 sd [-0.100, +0.200]" in reason


@pytest.mark.parametrize("text", ["", "{}", '{"gate": {"best_of_4": {"passed": true}}}', "[1]"])
def test_a_file_without_a_gate_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "judge.json").write_text(text)
    with pytest.raises(ValueError, match=naming(tmp_path / "judge.json", "gate.best_of_4")):
        gate_failure(tmp_path / "judge.json")
    with pytest.raises(ValueError, match=naming(tmp_path / "none.json", "gate.best_of_4")):
        gate_failure(tmp_path / "none.json")
