"""Decoding against transformers' own, and answers that do not know their neighbours."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import (
    draw_uniforms,
    generate,
    generate_all,
    greedy_responses,
)
from stages.rlhf.decoding.tokens import cut_after, pick
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs
from tests.conftest import naming
from tests.model_fixtures import at_once, ids_codec, random_ids, tiny_gemma2, tiny_llama
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

VOCAB, PAD, EOS, NEW = 40, 0, 2, 12


def tiny_gpt2() -> Any:
    """Learned positions: where a prompt stands in its padded row would show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] *= 3
    return model.eval().requires_grad_(False)


MODELS = {
    "llama": lambda: tiny_llama(VOCAB),
    "gemma2": lambda: tiny_gemma2(VOCAB),
    "gpt2": tiny_gpt2,
}


def theirs(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers of transformers' generate, one prompt at a time, so without any padding."""
    found = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )[0, len(prompt) :]
        found.append(cut_after(ids.tolist(), EOS))
    return found


@pytest.mark.parametrize("name", list(MODELS))
def test_greedy_is_what_transformers_generates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = MODELS[name](), random_ids(10, 1, 14, VOCAB, 0)
    compacted: list[int] = []
    select = DynamicCache.batch_select_indices

    def counted(cache: DynamicCache, rows: torch.Tensor) -> None:
        compacted.append(len(rows))
        select(cache, rows)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", counted)
    expected = theirs(model, prompts)
    found = generate(model, prompts, ids_codec(PAD, EOS), NEW)
    assert found == expected
    lengths = {len(answer) for answer in found if answer[-1] == EOS}
    assert len(lengths) >= 2, f"answers that end have lengths {lengths}: too alike to tell"
    assert any(answer[-1] != EOS and len(answer) == NEW for answer in found)
    assert compacted, "no finished row was ever taken out of the cache"


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_their_batch(temperature: float) -> None:
    model, prompts, codec = tiny_llama(VOCAB), random_ids(9, 1, 14, VOCAB, 1), ids_codec(PAD, EOS)
    draws = draw_uniforms(9, NEW, "test") if temperature else None
    expected = generate_all(model, prompts, codec, NEW, at_once(9), temperature, draws)
    for batch_size in (1, 2, 4):
        found = generate_all(model, prompts, codec, NEW, at_once(batch_size), temperature, draws)
        assert found == expected, f"batches of {batch_size}"
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    found = generate_all(
        model,
        [prompts[i] for i in order],
        codec,
        NEW,
        at_once(3),
        temperature,
        None if draws is None else draws[order],
    )
    assert found == [expected[i] for i in order]
    if temperature:
        assert expected != generate_all(model, prompts, codec, NEW, at_once(9)), (
            "the draws decide nothing"
        )


def test_sampling_follows_the_models_chances_at_its_temperature() -> None:
    model, prompt, count = tiny_llama(VOCAB), [5, 9, 11], 4000
    spread = (torch.arange(count)[:, None] + 0.5) / count
    found = generate(model, [prompt] * count, ids_codec(PAD, EOS), 1, 0.7, spread)
    counts = torch.bincount(torch.tensor(found).squeeze(-1), minlength=VOCAB)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / 0.7, -1) * count
    off = (counts - expected).abs().max().item()
    assert off <= 1, f"a token came {off} times more or less than its {count} draws say"


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.499, 0), (0.5, 2), (0.51, 2), (0.749, 2), (0.75, 3), (0.999, 3), (1 - 2**-24, 3)],
)
def test_pick_is_the_inverse_of_the_cumulative_probability(uniform: float, token: int) -> None:
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25, 0.0]]).log()
    assert pick(logits, torch.tensor([uniform])).tolist() == [token]


def test_uniforms_come_from_their_own_seed_alone() -> None:
    state = torch.get_rng_state()
    few, many = draw_uniforms(3, 20, 1, "draws"), draw_uniforms(8, 20, 1, "draws")
    assert few.equal(many[:3])
    assert many.unique().numel() == many.numel()
    assert not few.equal(draw_uniforms(3, 20, 2, "draws"))
    assert torch.get_rng_state().equal(state)
    assert many.min() >= 0
    assert many.max() < 1


def test_sampling_without_uniforms_is_refused() -> None:
    model = tiny_llama(VOCAB)
    with pytest.raises(ValueError, match=naming("temperature", 1.0, "uniforms")):
        generate(model, [[5]], ids_codec(PAD, EOS), NEW, 1.0)
    with pytest.raises(ValueError, match=naming("temperature", 0.0, "uniforms")):
        generate(model, [[5]], ids_codec(PAD, EOS), NEW, 0.0, torch.rand(1, NEW))
    for engine in ("koqa", "transformers"):
        with pytest.raises(ValueError, match=naming("temperature", 1.0, "uniforms")):
            generate_all(model, [[5]], ids_codec(PAD, EOS), NEW, at_once(4, engine), 1.0)


def test_no_prompts_no_answers() -> None:
    assert generate_all(tiny_llama(VOCAB), [], ids_codec(), NEW, at_once(4)) == []


@pytest.mark.parametrize(
    ("ids", "expected"), [([5, 2, 7, 2], [5, 2]), ([2, 2], [2]), ([5, 7], [5, 7]), ([], [])]
)
def test_cut_after_the_first_eos(ids: list[int], expected: list[int]) -> None:
    assert cut_after(ids, EOS) == expected


def test_answers_tell_their_length_and_whether_they_ended() -> None:
    codec = Codec(tiny_tokenizer())
    model = tiny_llama(len(codec.tokenizer))
    answers = greedy_responses(model, codec, QUESTIONS, NEW, at_once(3))
    ids = generate_all(model, [codec.prompt_ids(q) for q in QUESTIONS], codec, NEW, at_once(8))
    assert [a.tokens for a in answers] == [len(row) for row in ids]
    assert [a.ended for a in answers] == [row[-1] == codec.eos_id for row in ids]
    assert {a.ended for a in answers} == {True, False}
    assert [a.text for a in answers] == [codec.text(row) for row in ids]
    assert not any("<eos>" in a.text or "<pad>" in a.text for a in answers)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logprobs_of_an_answer_are_those_it_was_decoded_with(name: str) -> None:
    model, prompts = MODELS[name](), random_ids(6, 1, 14, VOCAB, 3)
    draws = draw_uniforms(6, NEW, "logprobs")
    answers = generate(model, prompts, ids_codec(PAD, EOS), NEW, 1.0, draws)
    rows = collate(prompts, answers, PAD)
    with torch.no_grad():
        found = response_logprobs(model, hidden_states(model, rows), rows)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chances = torch.log_softmax(logits.float(), -1)
        expected = chances.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
        torch.testing.assert_close(found[i, : len(answer)], expected, rtol=0, atol=1e-5)
        assert pick(logits, draws[i, : len(answer)]).tolist() == answer
