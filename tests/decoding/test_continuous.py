"""transformers' continuous batching behind the one function, and what it is checked by."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding import continuous
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_causal_lm
from stages.rlhf.precision import products
from tests.conftest import naming
from tests.model.family_twins import twin
from tests.model_fixtures import (
    LORA,
    at_once,
    ids_codec,
    random_ids,
    save_base,
    shake,
    tiny_gemma2,
    tiny_llama,
)

VOCAB, PAD, EOS, NEW, ROWS = 40, 0, 2, 12, 10
CODEC = ids_codec(PAD, EOS)
PROMPTS = random_ids(ROWS, 1, 14, VOCAB, 0)
ENGINE = at_once(4, "transformers")


def policy(dtype: torch.dtype = torch.float32) -> Roles:
    roles = Roles(tiny_llama(VOCAB, dtype=dtype), LORA)
    roles.add("policy")
    shake(roles, "policy", seed=1)
    return roles


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_greedy_answers_are_this_librarys(name: str) -> None:
    model = tiny_llama(VOCAB) if name == "llama" else twin(name)
    expected = generate_all(model, PROMPTS, CODEC, NEW, at_once(4))
    before = model.config._attn_implementation
    assert generate_all(model, PROMPTS, CODEC, NEW, ENGINE) == expected
    assert model.config._attn_implementation == before


def test_adapters_are_used_and_changes_of_them_seen() -> None:
    roles = policy()
    with roles.merged_copy("policy") as model:
        first = generate_all(model, PROMPTS, CODEC, NEW, ENGINE)
    with roles.use("policy") as model:
        assert generate_all(model, PROMPTS, CODEC, NEW, at_once(4)) == first
    shake(roles, "policy", seed=2)
    with roles.merged_copy("policy") as model:
        second = generate_all(model, PROMPTS, CODEC, NEW, ENGINE)
        assert second == generate_all(model, PROMPTS, CODEC, NEW, at_once(4)) != first
    with roles.use(None) as model:
        bare = generate_all(model, PROMPTS, CODEC, NEW, ENGINE)
        assert bare == generate_all(model, PROMPTS, CODEC, NEW, at_once(4)) != second


def test_the_same_call_samples_the_same_and_draws_from_nothing_else() -> None:
    model, draws = tiny_llama(VOCAB), draw_uniforms(ROWS, NEW, "engine")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate_all(model, PROMPTS, CODEC, NEW, ENGINE, 1.0, draws)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(6)
    assert generate_all(model, PROMPTS, CODEC, NEW, ENGINE, 1.0, draws) == first
    other = draw_uniforms(ROWS, NEW, "another")
    assert generate_all(model, PROMPTS, CODEC, NEW, ENGINE, 1.0, other) != first


def test_sampling_follows_the_models_chances_at_its_temperature() -> None:
    model, count = tiny_llama(VOCAB), 2000
    draws = draw_uniforms(count, 1, "engine")
    found = generate_all(
        model, [[5, 9, 11]] * count, CODEC, 1, at_once(64, "transformers"), 0.7, draws
    )
    counts = torch.bincount(torch.tensor(found).squeeze(-1), minlength=VOCAB)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 11]])).logits[0, -1]
    chances = torch.softmax(logits / 0.7, -1)
    sd = (count * chances * (1 - chances)).sqrt()
    assert ((counts - count * chances).abs() <= 4 * sd + 1).all()


def test_bfloat16_is_within_its_tolerance() -> None:
    with policy(torch.bfloat16).use("policy") as model:
        draws = draw_uniforms(ROWS, NEW, "engine")
        assert len(generate_all(model, PROMPTS, CODEC, NEW, ENGINE, 1.0, draws)) == ROWS


def test_products_in_another_dtype_than_weights_are_refused(tmp_path: Any) -> None:
    model = load_causal_lm(save_base(tmp_path), "float32")
    with (
        products("cpu", enabled=True),
        pytest.raises(ValueError, match=naming("'llama'", "transformers", "mixed", "'koqa'")),
    ):
        generate_all(model, PROMPTS, CODEC, NEW, ENGINE)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_another_forward_than_the_trainers_is_an_error(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inner = tiny_llama(VOCAB), continuous.hidden_states
    monkeypatch.setattr(continuous, "hidden_states", lambda *given: 1.001 * inner(*given))
    draws = draw_uniforms(ROWS, NEW, "engine") if temperature else None
    told = naming("transformers", "log-probabilities", "trainer", "up to", 0.0001, "float32")
    with pytest.raises(ValueError, match=told):
        generate_all(model, PROMPTS, CODEC, NEW, ENGINE, temperature, draws)


def test_the_largest_difference_is_named() -> None:
    model = tiny_llama(VOCAB)
    with torch.no_grad():
        chances = torch.log_softmax(model(torch.tensor([[5, 6, 7]])).logits[0].float(), -1)
    right = [chances[1, 7].item(), chances[2, 8].item()]
    continuous.check(model, [([5, 6], [7, 8], right)], PAD, 1.0)
    wrong = [right[0] + 0.25, right[1] - 0.5]
    told = naming("1 responses", "up to 0.5,", "0.4 in root mean square")
    with pytest.raises(ValueError, match=told):
        continuous.check(model, [([5, 6], [7, 8], wrong)], PAD, 1.0)


def test_a_soft_cap_that_the_engine_would_leave_out_is_refused() -> None:
    with pytest.raises(ValueError, match=naming("gemma2", "transformers", "soft-cap", "koqa")):
        generate_all(tiny_gemma2(VOCAB), PROMPTS, CODEC, NEW, ENGINE)


def test_a_decoder_spread_over_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "is_sharded", lambda decoder: True)
    with pytest.raises(ValueError, match=naming("llama", "processes", "transformers", "koqa")):
        generate_all(tiny_llama(VOCAB), PROMPTS, CODEC, NEW, ENGINE)


def test_an_engine_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(VOCAB)
    monkeypatch.setattr(continuous, "LEAST_TOKENS", 0)
    monkeypatch.setattr(
        type(model.model), "forward", lambda *_, **__: (_ for _ in ()).throw(ValueError("no room"))
    )
    with pytest.raises(ValueError, match=naming("generate.engine", "no room")):
        generate_all(model, PROMPTS, CODEC, NEW, ENGINE)


def test_no_prompts_no_answers() -> None:
    assert generate_all(tiny_llama(VOCAB), [], CODEC, NEW, ENGINE) == []
    assert continuous.generate(tiny_llama(VOCAB), [], CODEC, NEW, 4) == []  # a process without any


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValidationError, match=naming("engine", "koqa", "transformers")):
        GenerationScale(batch_size=4, engine="vllm")
    with pytest.raises(ValidationError, match=naming("engine", "required")):
        GenerationScale(batch_size=4)
