"""The plan's arithmetic: against torch's own counts, and against peaks that were measured."""

import json
import subprocess
import sys
from typing import Any

import pytest

from stages.rlhf.model.roles import Roles
from stages.rlhf.plan import plan
from stages.rlhf.plan.footprint import GIB, Shape, memory, trained
from tests.conftest import ROOT, naming
from tests.model_fixtures import LORA, shipped, tiny_gemma2, tiny_llama

LLAMA32 = {  # config.json of meta-llama/Llama-3.2-1B
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def chosen(model: str) -> Any:
    return shipped().model_copy(update={"model": model})


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
def test_parameters_are_torchs(make: Any) -> None:
    model = make(64)
    shape = Shape.of(model.config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    roles = Roles(model, LORA)
    roles.add("policy")
    assert shape.lora(LORA.r) == sum(p.numel() for p in roles.parameters("policy"))


def test_a_known_model() -> None:
    shape = Shape.of(LLAMA32)
    assert shape.parameters == 1_235_814_400
    assert shape.lora(16) == 11_272_192
    # 2 (keys, values) x 8 heads x 64 x 16 layers x 2 bytes
    assert shape.cache(2) == 32_768
    needs = memory(shape, chosen("llama32-1b"), "cuda")
    assert needs["ppo"]["weights"] / GIB == pytest.approx(2.30, abs=0.01)
    assert needs["ppo"]["training"] == trained(11_272_192)  # rloo: no value model
    assert max(needs["sft"], key=needs["sft"].__getitem__) == "activations"
    # keys and values of 64 answers of 768 tokens at once, not of all 128
    assert needs["ppo"]["decoding"] == 64 * (768 * 32_768 + 4 * 4 * 128_256)


def test_a_config_without_a_width_is_refused_by_name() -> None:
    config = {key: n for key, n in LLAMA32.items() if key != "intermediate_size"}
    with pytest.raises(ValueError, match=naming("config.json", "llama", "intermediate_size")):
        Shape.of(config)


def test_more_of_anything_needs_more() -> None:
    shape, params = Shape.of(LLAMA32), chosen("llama32-1b")

    def with_ppo(**knobs: Any) -> Any:
        model = params.base_model.model_copy(
            update={"ppo": params.base_model.ppo.model_copy(update=knobs)}
        )
        return params.model_copy(update={"models": {**params.models, params.model: model}})

    plain = memory(shape, params, "cuda")["ppo"]
    more = with_ppo(micro_batch_tokens=2 * params.base_model.ppo.micro_batch_tokens + 1000)
    assert memory(shape, more, "cuda")["ppo"]["activations"] > plain["activations"]
    fewer = with_ppo(batch_size=params.base_model.generate.batch_size // 2)
    assert memory(shape, fewer, "cuda")["ppo"]["decoding"] == plain["decoding"] / 2


def test_what_does_not_fit_is_named_with_its_knob() -> None:
    params = chosen("llama32-1b")
    needs = memory(Shape.of(LLAMA32), params, "cuda")
    assert plan.too_much(needs, 0.8, 1000, params) == []
    problems = plan.too_much(needs, 0.8, 12, params)
    assert problems
    assert any(
        problem.startswith("sft needs ") and "models.llama32-1b.sft.micro_batch_size" in problem
        for problem in problems
    )
    assert all("12.0 are available" in problem for problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "tokens"), [(384, 4096), (768, 4096)])
def test_activations_of_widths_held_out_of_the_fit_are_what_is_measured(
    hidden: int, tokens: int
) -> None:
    """The constants were fitted at widths 256 and 512; one is between them and one beyond.

    With 4096 tokens activations are most of the peak. With 1024 an Intel with AMX holds 100 to 200
    MiB more than them, of which the plan knows nothing: packed weights and scratch, as it seems.
    """
    shape = Shape(hidden, 512, 4, hidden // 32, hidden // 32, 32, 2000, tied=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.ppo.measured_update", str(hidden), str(tokens)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    expected = tokens * shape.worked(4)
    expected += trained(2 * shape.lora(16)) + 64 * 80 * shape.cache(4)
    found = json.loads(done.stdout.splitlines()[-1])["mib"]
    assert found == pytest.approx(expected / 2**20, rel=0.35)
