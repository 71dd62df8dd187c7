"""A static cache gives the answers of a growing one; here its steps are called, not replayed."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask

from stages.rlhf.decoding import generation, static
from stages.rlhf.decoding.generation import draw_uniforms, generate, generate_all
from stages.rlhf.decoding.static import StaticDecoder, Step, called, decoder_for, usable
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import decoder_of
from tests.conftest import naming
from tests.model.family_twins import twin
from tests.model_fixtures import (
    LORA,
    at_once,
    ids_codec,
    random_ids,
    shake,
    tiny_gemma2,
    tiny_llama,
)

VOCAB, PAD, EOS, NEW, LONGEST = 40, 0, 2, 20, 14
ROWS, FEW = 23, 7
CODEC = ids_codec(PAD, EOS)


def adapted(dtype: torch.dtype) -> Any:
    roles = Roles(tiny_llama(VOCAB, dtype=dtype), LORA)
    roles.add("policy")
    shake(roles, "policy", seed=1)
    return roles.model


MODELS = {
    "llama": lambda: tiny_llama(VOCAB),
    "llama with an adapter": lambda: adapted(torch.float32),
    "llama in bfloat16": lambda: adapted(torch.bfloat16),
    "gemma2": lambda: tiny_gemma2(VOCAB),  # windows of 6 tokens in each second layer, as below
    "gemma3": lambda: twin("gemma3_text"),
    "qwen3": lambda: twin("qwen3"),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


def given(
    model: Any, temperature: float, rows: int = ROWS
) -> tuple[list[list[int]], torch.Tensor | None]:
    """Prompts of 1 to LONGEST tokens, and uniforms by which half of the answers end early."""
    words = model.config.vocab_size
    draws = draw_uniforms(rows, NEW, "static") if temperature else None
    return random_ids(rows, 1, LONGEST, words, 0), draws


def decoder(model: Any, temperature: float, rows: int = ROWS) -> StaticDecoder:
    return StaticDecoder(model, PAD, EOS, rows, LONGEST + NEW, NEW, temperature, called)


def assert_equal(found: list[list[int]], expected: list[list[int]], model: Any) -> None:
    """In bfloat16 one row may differ: columns that are masked change how its sums are rounded."""
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= len(expected) - (model.dtype == torch.bfloat16)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_answers_are_those_of_the_growing_cache(model: Any, temperature: float) -> None:
    prompts, draws = given(model, temperature)
    expected = generate(model, prompts, CODEC, NEW, temperature, draws)
    one = decoder(model, temperature)
    assert_equal(one.generate(prompts, draws), expected, model)
    few = slice(3, 12)  # the batch before must not show
    some = None if draws is None else draws[few]
    assert_equal(one.generate(prompts[few], some), expected[few], model)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_the_parts(
    model: Any, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, draws = given(model, temperature, FEW)
    expected = generate_all(model, prompts, CODEC, NEW, at_once(FEW), temperature, draws)
    for rows in (1, 3, FEW):
        one = decoder(model, temperature, rows)
        monkeypatch.setattr(generation, "decoder_for", lambda *args, one=one: one)
        found = generate_all(model, prompts, CODEC, NEW, at_once(rows), temperature, draws)
        assert_equal(found, expected, model)
        assert one.steps, "decoded by something else"


def test_finished_rows_leave_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "LOOK_EVERY", 2)
    model, prompts = tiny_llama(VOCAB), random_ids(36, 1, LONGEST, VOCAB, 2)
    draws = draw_uniforms(36, NEW, "halves")  # of 40 rows
    sizes: list[int] = []

    def counted(step: Step) -> Step:
        rows = step.args[0]  # type: ignore[attr-defined]

        def again() -> None:
            sizes.append(rows)
            step()

        again()
        return again

    one = StaticDecoder(model, PAD, EOS, 40, LONGEST + NEW, NEW, 1.0, counted)
    assert one.generate([], None) == []  # as a process that has none
    expected = generate(model, prompts, CODEC, NEW, 1.0, draws)
    assert one.generate(prompts, draws) == expected
    assert one.sizes == [40, 20, 10, 8]
    assert len(set(sizes)) > 2, "few rows were ever taken out"
    assert sizes == sorted(sizes, reverse=True)
    living = [sum(len(answer) > step for answer in expected) for step in range(NEW)]
    for step, rows in enumerate(sizes, start=1):
        assert rows >= living[step]
        looked = step - (step - 1) % static.LOOK_EVERY
        assert rows == min(size for size in one.sizes if size >= living[looked])


def test_rows_that_fill_a_size_up_read_no_position_beyond_the_model() -> None:
    model = twin("gpt2")  # has learned positions, and no more than 64
    prompts = random_ids(5, 1, LONGEST, VOCAB, 3)
    expected = generate(model, prompts, CODEC, NEW)
    one = decoder(model, 0.0)
    for _ in range(5):
        assert one.generate(prompts, None) == expected


class Reads(TorchDispatchMode):
    """Counts what a CUDA graph cannot hold: values read back, and numbers brought to the GPU."""

    KINDS = ("_local_scalar_dense", "nonzero", "scalar_tensor")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.found += [name] if name in self.KINDS else []
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_gpu(model: Any) -> None:
    decoder_of(model).set_attn_implementation("eager")  # sdpa on a CPU is in parts of its own
    prompts, draws = given(model, 1.0)
    reads = Reads()

    def watched(step: Step) -> Step:
        def again() -> None:
            with reads:
                step()

        again()
        return again

    one = StaticDecoder(model, PAD, EOS, ROWS, LONGEST + NEW, NEW, 1.0, watched)
    one.generate(prompts, draws)
    assert reads.found == []
    with reads:
        one.generate(prompts, draws)
    looks = -(-(NEW - 1) // static.LOOK_EVERY)
    assert 0 < reads.found.count("_local_scalar_dense") <= looks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_eager_attention_are_transformers(dtype: torch.dtype) -> None:
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    sizes = {"batch_size": 2, "q_length": 2, "kv_length": 4, "q_offset": 2}
    ours = AttentionMaskInterface()["eager"]
    assert ours is not eager_mask
    more = {**sizes, "attention_mask": mask, "dtype": dtype, "allow_is_causal_skip": True}
    assert ours(**more).equal(eager_mask(**more))
    assert ours(**sizes).equal(eager_mask(**sizes))
    none = {**sizes, "allow_is_bidirectional_skip": True}
    assert ours(**none) is eager_mask(**none) is None


def test_a_family_that_keeps_more_is_decoded_by_the_growing_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        model = twin("deepseek_v32")
        assert not usable(model)
        assert not usable(model)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2  # one for each model
    assert re.search(naming("deepseek_v32", "more than keys and values"), said[0])
    assert usable(tiny_llama(VOCAB))
    assert capsys.readouterr().err == ""


def test_a_family_that_reads_columns_as_positions_is_found_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not usable(twin("gpt_neo"))
    assert "standard deviations" in capsys.readouterr().err


def test_a_decoder_spread_over_processes_steps_with_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(static, "is_sharded", lambda decoder: True)
    assert not usable(tiny_llama(VOCAB))
    assert "processes" in capsys.readouterr().err


def test_only_a_gpu_decodes_by_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(VOCAB)
    given = (CODEC, [[5, 6]], 4, NEW, 0.0)
    assert decoder_for(model, *given) is None
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(static, "usable", lambda model: True)
    monkeypatch.setattr(static, "StaticDecoder", lambda *args: args)
    found: Any = decoder_for(model, *given)
    assert found[1:7] == (PAD, EOS, 1, 2 + NEW, NEW, 0.0)
    assert isinstance(found[7], partial)
    assert decoder_for(model, CODEC, [], 4, NEW, 0.0) is None
    monkeypatch.setenv("KOQA_CUDA_GRAPHS", "0")
    assert decoder_for(model, *given) is None
    monkeypatch.setenv("KOQA_CUDA_GRAPHS", "no")
    with pytest.raises(ValueError, match=naming("KOQA_CUDA_GRAPHS", "no", "0 or 1")):
        decoder_for(model, *given)


class Stream:
    """Stands for CUDA's, and for what is entered on it."""

    def __init__(self, *_: Any) -> None: ...
    def wait_stream(self, other: "Stream") -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class Graph:
    """Stands for CUDA's: what is captured is not done until it is replayed."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def replay(self) -> None:
        for step in self.steps:
            step()


class Capturing(Stream):
    now: "Graph | None" = None

    def __init__(self, graph: Graph, *_: Any) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        Capturing.now = self.graph

    def __exit__(self, *error: object) -> None:
        Capturing.now = None


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    static._side_stream.cache_clear()
    for name, stands in {
        "Stream": Stream,
        "stream": Stream,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": Capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stands)
    yield
    static._side_stream.cache_clear()


def recorded(step: Step, raises: Exception | None = None) -> Step:
    """A step which, while a graph is captured, is recorded instead of taken."""

    def one() -> None:
        if Capturing.now is None:
            step()
        elif raises:
            raise raises
        else:
            Capturing.now.steps.append(step)

    return one


@pytest.mark.usefixtures("fake_cuda")
def test_a_captured_step_is_taken_once_and_replayed_then() -> None:
    model = tiny_llama(VOCAB)
    prompts, draws = given(model, 1.0)
    capture = partial(static.captured, decoder_of(model), 0)
    one = StaticDecoder(
        *(model, PAD, EOS, ROWS, LONGEST + NEW, NEW, 1.0),
        lambda step: capture(recorded(step)),
    )
    for _ in range(2):
        assert one.generate(prompts, draws) == generate(model, prompts, CODEC, NEW, 1.0, draws)
    kinds = {getattr(step, "__self__", None).__class__ for step in one.steps.values()}
    assert kinds == {Graph}


@pytest.mark.usefixtures("fake_cuda")
def test_what_cannot_be_captured_is_called_and_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_llama(VOCAB)
    prompts, draws = given(model, 1.0)
    assert usable(model)
    capture, error = (
        partial(static.captured, decoder_of(model), 0),
        RuntimeError("not permitted\n at"),
    )
    one = StaticDecoder(
        *(model, PAD, EOS, ROWS, LONGEST + NEW, NEW, 1.0),
        lambda step: capture(recorded(step, error)),
    )
    assert one.generate(prompts, draws) == generate(model, prompts, CODEC, NEW, 1.0, draws)
    assert len(one.steps) > 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(naming("llama", "CUDA graphs", "not permitted"), said[0])
    assert not usable(model)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_products_in_bfloat16_of_float32_weights(temperature: float) -> None:
    """As `dtype: mixed` on a GPU: keys in float32 next to values in bfloat16."""
    model = adapted(torch.float32)
    prompts, draws = given(model, temperature)
    on_gpu = StaticDecoder.generate.__wrapped__.__wrapped__  # without the CPU's own dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = on_gpu(decoder(model, temperature), prompts, draws)
        expected = generate.__wrapped__.__wrapped__(model, prompts, CODEC, NEW, temperature, draws)
        assert static._off(model) is None
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= ROWS - 3
