"""Best-of-n samples, and the gate's arithmetic."""

from pathlib import Path

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.reward.best_of_n import gate, sample
from tests.conftest import naming
from tests.model_fixtures import at_once, sft_roles
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer


def test_answers_differ_by_their_place_and_not_by_their_batch(tmp_path: Path) -> None:
    codec, roles = Codec(tiny_tokenizer()), sft_roles(tmp_path, "full")
    prompts = [codec.prompt_ids(question) for question in QUESTIONS]
    with roles.use(None) as model:
        found = sample(model, prompts, 3, codec, 8, at_once(64), 1.0, "seed")
        again = sample(model, prompts, 3, codec, 8, at_once(5), 1.0, "seed")
        other = sample(model, prompts, 3, codec, 8, at_once(64), 1.0, "other")
        draws = draw_uniforms(24, 8, "seed")
        repeated = [prompt for prompt in prompts for _ in range(3)]
        said = generate_all(model, repeated, codec, 8, at_once(24), 1.0, draws)
    assert found == again != other
    assert [answer for _, answers in found for answer in answers] == said
    assert [prompt for prompt, _ in found] == prompts
    assert {len(answers) for _, answers in found} == {3}
    assert any(len({tuple(a) for a in answers}) > 1 for _, answers in found)


def test_the_gate_by_hand() -> None:
    judge_scores = torch.tensor([[1.0, 3.0], [0.0, 2.0], [5.0, 1.0]])
    found = gate(judge_scores, torch.tensor([1, 1, 0]), 200, 0)
    assert found["sft"] == pytest.approx(2.0)
    assert found["best_of_2"] == pytest.approx(10 / 3)
    assert found["gain"] == pytest.approx(4 / 3)
    assert found["gain_ci_low"] == pytest.approx(1.0)  # no question gains less
    assert found["gain_ci_high"] == pytest.approx(2.0)
    assert found["passed"] is True
    assert gate(judge_scores, torch.tensor([0, 0, 1]), 200, 0)["passed"] is False


def test_chance_does_not_open_the_gate_and_a_signal_does() -> None:
    generator = torch.Generator().manual_seed(0)
    judge_scores = torch.randn(100, 4, generator=generator)
    opened = []
    for seed in range(40):
        blind = torch.randint(4, (100,), generator=torch.Generator().manual_seed(seed))
        opened.append(gate(judge_scores, blind, 200, seed)["passed"])
    assert sum(opened) <= 4  # 1 in 40 by the level of the interval
    weak = (judge_scores + 3 * torch.randn(100, 4, generator=generator)).argmax(-1)
    found = gate(judge_scores, weak, 500, 0)
    assert found["passed"]
    assert 0 < found["gain_ci_low"] < found["gain"] < found["gain_ci_high"]
    assert found["gain"] == pytest.approx(found["best_of_4"] - found["sft"])


def test_one_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=naming(1, 2)):
        gate(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), 10, 0)
