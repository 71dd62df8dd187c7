"""A GPU comes to what the CPU comes to, and to the same bits twice; needs one (`-m gpu`)."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.decoding.static import GRAPHS, decoder_for
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs
from stages.rlhf.runs import signals
from stages.rlhf.runs.signals import Interrupted
from tests.gpu import DEVICE
from tests.model_fixtures import (
    KINDS,
    at_once,
    differing,
    sft_roles,
    tiny_gemma2,
    tiny_llama,
)
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
    return deepcopy(model).to(DEVICE)


def test_log_probabilities_and_their_gradients_are_the_cpus(twin: Any) -> None:
    found = {}
    for name, model in {"cpu": twin, "gpu": on_gpu(twin)}.items():
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
        models = twin, on_gpu(twin)
        cpu, gpu = (generate_all(m, PROMPTS, CODEC, 12, at_once(4), *more) for m in models)
        same = sum(one == other for one, other in zip(cpu, gpu, strict=True))
        assert same >= len(PROMPTS) - 1, "more than a tie in the last digits"


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA graphs")
@pytest.mark.parametrize(("method", "dtype"), KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_graphs_give_the_answers_of_the_growing_cache(
    tmp_path: Path, method: str, dtype: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles, prompts = sft_roles(tmp_path, method, dtype), PROMPTS * 4
    roles.add(POLICY, like=roles.reference)
    draws = draw_uniforms(len(prompts), 24, "graphs") if temperature else None
    limits = CODEC, 24, at_once(len(prompts)), temperature, draws
    with roles.merged_copy(POLICY) as model:
        monkeypatch.setenv(GRAPHS, "0")
        expected = generate_all(model, prompts, *limits)
        monkeypatch.delenv(GRAPHS)
        decoder = decoder_for(model, CODEC, prompts, len(prompts), 24, temperature)
        assert decoder is not None
        for _ in range(2):  # captured, then replayed from the first step on
            found = decoder.generate(prompts, draws)
            same = sum(one == other for one, other in zip(expected, found, strict=True))
            # ties in last digits, of which bfloat16 has three
            assert same >= len(prompts) - (1 if dtype == "float32" else len(prompts) // 4)
    steps = {type(getattr(step, "__self__", step)) for step in decoder.steps.values()}
    assert steps == {torch.cuda.CUDAGraph}


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
