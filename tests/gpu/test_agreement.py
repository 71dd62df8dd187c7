"""A GPU comes to what the CPU comes to, and to the same bits twice; needs one (`-m gpu`)."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs
from stages.rlhf.runs import signals
from stages.rlhf.runs.signals import Interrupted
from tests.model_fixtures import differing, tiny_gemma2, tiny_llama
from tests.runs.loops import RUNS
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

CODEC = Codec(tiny_tokenizer())
PROMPTS = [CODEC.prompt_ids(question) for question in QUESTIONS]
TWINS: dict[str, Callable[[int], Any]] = {"llama": tiny_llama, "gemma2": tiny_gemma2}
pytestmark = pytest.mark.gpu


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Any:
    return TWINS[request.param](len(CODEC.tokenizer)).eval()


def on_gpu(model: Any) -> Any:
    return deepcopy(model).to("cuda")


def test_log_probabilities_and_their_gradients_are_the_cpus(twin: Any) -> None:
    found = {}
    for name, model in {"cpu": twin, "cuda": on_gpu(twin)}.items():
        model.requires_grad_(True)
        rows = collate(PROMPTS, [[*reversed(p)] for p in PROMPTS], CODEC.pad_id, model.device)
        logprobs = response_logprobs(model, hidden_states(model, rows), rows)
        logprobs.sum().backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found[name] = [logprobs.detach().cpu(), *gradients]
    for cpu, gpu in zip(*found.values(), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-3)


def test_greedy_and_sampled_answers_are_the_cpus(twin: Any) -> None:
    draws = draw_uniforms(len(PROMPTS), 12, "tests")
    for more in ((), (1.0, draws)):
        cpu, gpu = (generate_all(m, PROMPTS, CODEC, 12, 4, *more) for m in (twin, on_gpu(twin)))
        same = sum(one == other for one, other in zip(cpu, gpu, strict=True))
        assert same >= len(PROMPTS) - 1, "more than a tie in the last digits"


@pytest.mark.parametrize("loop", RUNS)
def test_training_twice_comes_to_the_same_bits(tmp_path: Path, loop: str) -> None:
    one, two = (RUNS[loop](tmp_path / name) for name in ("one", "two"))
    assert differing(one, two) == []


@pytest.mark.parametrize("loop", RUNS)
def test_a_run_that_was_stopped_comes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    whole = RUNS[loop](tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(signals, "stop_requested", lambda: True)
        with pytest.raises(Interrupted):
            RUNS[loop](tmp_path / "cut")
    assert differing(whole, RUNS[loop](tmp_path / "cut")) == []
