"""What a GPU does otherwise than a CPU, in the stages that meet it; needs one (`-m gpu`)."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages import base, sft
from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.model.store import load_causal_lm
from stages.rlhf.precision import autocasts, device, products
from stages.rlhf.records import SftRow, write_jsonl
from stages.rlhf.train import sft_trainer
from tests.benchmarks.device_memory import held, most
from tests.gpu import DEVICE
from tests.model_fixtures import (
    at_once,
    micro_params,
    ppo_trainer,
    sampled,
    tiny_llama,
)
from tests.sft_fixtures import micro, train, write_inputs
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES, SIXTY_FOUR, tiny_tokenizer

pytestmark = pytest.mark.gpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


def test_products_are_in_bfloat16_where_the_hardware_makes_them() -> None:
    """And not where it only emulates them, as a T4 does."""
    if DEVICE == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert device() == DEVICE
    one = torch.ones(2, 2, device=DEVICE)
    with products(DEVICE, autocasts("mixed")):
        assert (one @ one).dtype == (torch.bfloat16 if native else torch.float32)


def test_sft_takes_one_gpu_where_two_are_visible(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL refuses two; the second is there only while they are counted."""
    made, configs = sft_trainer.trainer_config, []

    def counted(*given: Any) -> Any:
        with monkeypatch.context() as two:
            two.setattr(torch.cuda, "device_count", lambda: 2)
            configs.append(made(*given))
        return configs[-1]

    monkeypatch.setattr(sft_trainer, "trainer_config", counted)
    assert math.isfinite(train(micro(method="lora"), folder)["loss"])
    assert [config.device.type for config in configs] == [DEVICE]
    assert configs[0].n_gpu == (DEVICE == "cuda")


def test_a_base_model_without_a_hub_is_trained_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, inner = [], base.pretrain

    def watched(model: Any, *given: Any) -> Any:
        where.append(model.device.type)
        return inner(model, *given)

    monkeypatch.setattr(base, "pretrain", watched)
    tiny_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in 8 * SENTENCES])
    write_jsonl(tmp_path / "reading.jsonl", [])
    params = micro_params(dtype="mixed")
    found = base.make(params, tmp_path, tmp_path / "out", tmp_path / "work")
    assert where == [DEVICE]
    assert found["loss"] < math.log(params.base_model.architecture.vocab_size) - 0.5
    assert load_causal_lm(tmp_path / "out", "mixed").device.type == DEVICE


def test_a_rollout_decoded_in_parts_is_that_of_all_at_once(tmp_path: Path) -> None:
    whole, parts = (
        sampled(ppo_trainer(tmp_path, decoded_at_once=count)).sequences for count in (64, 4)
    )
    assert whole.ids.device.type == DEVICE
    answers = (
        [row[kept].tolist() for row, kept in zip(one.response, one.response_mask, strict=True)]
        for one in (whole, parts)
    )
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert same >= len(whole) - 1, "more than a tie in the last digits"


def test_answers_in_parts_hold_less() -> None:
    codec = Codec(tiny_tokenizer())
    model = tiny_llama(len(codec.tokenizer)).to(DEVICE)
    prompts = [codec.prompt_ids(question) for question in SIXTY_FOUR]
    peaks = []
    generate_all(model, prompts[:4], codec, 32, at_once(4))  # libraries set themselves up
    for rows in (4, 64):
        before = held()
        generate_all(model, prompts, codec, 32, at_once(rows))
        peaks.append(most() - before)
    assert peaks[0] < peaks[1] or DEVICE == "cpu"  # whose peak is that of all tests before


def test_sft_answers_as_many_validation_questions_as_the_cap_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, inner = [], sft.greedy_responses

    def watched(model: Any, codec: Any, questions: list[str], *given: Any) -> Any:
        asked.append((model.device.type, questions))
        return inner(model, codec, questions, *given)

    monkeypatch.setattr(sft, "greedy_responses", watched)
    many = [SftRow(id=str(i), question=text, answer="네.") for i, text in enumerate(QUESTIONS)]
    write_jsonl(folder / "rows" / "validation.jsonl", many)
    train(micro().model_copy(update={"validation_rows": 3}), folder)
    ((where, questions),) = asked
    assert (where, len(questions)) == (DEVICE, 3)


def test_full_training_moves_weights_by_less_than_bfloat16_resolves(folder: Path) -> None:
    """In `mixed`: their products are bfloat16, they are not; bfloat16 itself is refused."""
    params = micro(method="full", learning_rate=1e-5)
    entry = params.base_model.model_copy(update={"dtype": "mixed"})
    train(params.model_copy(update={"models": {"micro": entry}}), folder)
    before, after = (load_file(folder / of / "model.safetensors") for of in ("base", "sft"))
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    rounded = sum(int((after[k].bfloat16() != before[k].bfloat16()).sum()) for k in before)
    assert moved > 10 * rounded
