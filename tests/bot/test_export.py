"""Exports: what strangers load is what was trained, or nothing is written."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from stages.rlhf.bot import export, parity
from stages.rlhf.bot.merge import merged, to_export
from stages.rlhf.bot.models import BotParams
from stages.rlhf.config.base import load
from stages.rlhf.precision import WEIGHTS
from tests.bot_fixtures import PLAIN_TWIN, TWINS, exported, opened, plain, write_run
from tests.conftest import naming
from tests.model_fixtures import tiny_llama
from tests.tokenizer_fixtures import QUESTIONS, SIXTY_FOUR, tiny_tokenizer

QUESTION = QUESTIONS[5]


@pytest.mark.parametrize("name", ["base", "sft", "ppo"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_merged_model_answers_alike_in_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    data = write_run(tmp_path, monkeypatch, method)
    assert "8 of 8 answers equal" in exported(data, tmp_path / "out", name)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert not (tmp_path / "out.draft").exists()
    bot = opened(data, names=(name,), scored=False)
    expected = bot.codec.text(*bot.greedy(name, [bot.prompt(QUESTION)]))
    teller = pipeline("text-generation", str(tmp_path / "out"), device="cpu")
    said = teller([{"role": "user", "content": QUESTION}])[0]["generated_text"][-1]
    assert said == {"role": "assistant", "content": said["content"]}
    assert said["content"].strip() == expected


@pytest.mark.parametrize("family", TWINS)
def test_twins_of_the_families_keep_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    make_tokenizer, make_model = TWINS[family]
    data = write_run(tmp_path, monkeypatch, twin=(make_tokenizer(), make_model))
    assert "64 of 64" in exported(data, tmp_path / "out", questions=SIXTY_FOUR)


NF4_TWIN = tiny_tokenizer, lambda size: tiny_llama(size, dtype=torch.bfloat16, width=64)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra qlora")
@pytest.mark.parametrize("name", ["base", "sft", "ppo", "rm"])
def test_an_adapter_trained_on_4_bit_weights_is_merged_into_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer, make = NF4_TWIN[0](), NF4_TWIN[1]
    data = write_run(tmp_path, monkeypatch, twin=(tokenizer, make), dtype="nf4")
    bot = to_export(load(BotParams), data, ("sft",) if name == "rm" else (name,), name == "rm")
    if name == "rm":
        write = export.export_reward(bot, data, "float32", QUESTIONS)
        assert "8 of 8" in export.in_draft(tmp_path / "out", write, "card")
        return
    write = export.export_merged(bot, name, data, "float32", SIXTY_FOUR)
    assert "64 of 64" in export.in_draft(tmp_path / "out", write, "card")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(model.config, "quantization_config")
    trained = opened(data, names=(name,), scored=False)
    ids = torch.tensor([bot.prompt(QUESTION)])
    holder, role = trained._holder(name)
    with torch.no_grad(), holder.use(role) as quantised:
        expected, found = (m(ids).logits.float() for m in (quantised, model))
    off = (found - expected).square().mean().sqrt() / expected.std()
    assert off < 0.03, "not of the weights that were trained on"  # measured: .011


@pytest.mark.parametrize("name", ["base", "sft", "ppo"])
def test_what_was_trained_in_bfloat16_is_exported_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer, make = NF4_TWIN[0](), NF4_TWIN[1]
    data = write_run(tmp_path, monkeypatch, twin=(tokenizer, make), dtype="bfloat16")
    bot = to_export(load(BotParams), data, (name,), scored=False)
    write = export.export_merged(bot, name, data, "float32", SIXTY_FOUR)
    assert "64 of 64" in export.in_draft(tmp_path / "out", write, "card")


def test_a_merge_is_in_float32_and_cast_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    whole = merged("ppo", data)
    exact = {name: weight.clone() for name, weight in whole.state_dict().items()}
    bot = opened(data, names=("ppo",), scored=False)
    export.write_model(whole, bot.codec, "bfloat16", 32, tmp_path / "half")
    for name, weight in load_file(tmp_path / "half" / "model.safetensors").items():
        assert weight.dtype == torch.bfloat16
        assert weight.equal(exact[name].to(torch.bfloat16)), name


def test_what_says_other_tokens_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    written = export.write_model

    def rounded(model: Any, codec: Any, dtype: str, limit: int, folder: Path) -> None:
        for weight in model.parameters():  # as a merge in bfloat16, and then some
            weight.copy_((weight * 4).round() / 4)
        written(model, codec, dtype, limit, folder)

    monkeypatch.setattr(export, "write_model", torch.no_grad()(rounded))
    with pytest.raises(ValueError, match=naming("at token", "nothing was written", "dtype")):
        exported(data, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("family", TWINS)
def test_a_cast_that_changes_an_answer_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    make_tokenizer, make_model = TWINS[family]
    data = write_run(tmp_path, monkeypatch, twin=(make_tokenizer(), make_model))
    with pytest.raises(ValueError, match=naming("at token", "(id ", "--dtype float32")):
        exported(data, tmp_path / "out", dtype="bfloat16", questions=SIXTY_FOUR)
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_that_encodes_otherwise_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    exported(data, tmp_path / "out")
    (tmp_path / "out" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    bot = opened(data, names=("ppo",), scored=False)
    with pytest.raises(ValueError, match=naming(QUESTIONS[0], "tokenizer")):
        parity.same_tokens(bot, "ppo", tmp_path / "out", QUESTIONS)


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path, monkeypatch)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=naming(tmp_path / "out", "exists")):
        exported(data, tmp_path / "out")


def test_peft_loads_the_adapter_onto_the_hubs_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, make = PLAIN_TWIN[0](), PLAIN_TWIN[1]
    data = write_run(tmp_path, monkeypatch, twin=(tokenizer, make))
    bot = opened(data, names=("ppo",), scored=False)
    export.in_draft(tmp_path / "out", export.export_adapter(bot, "ppo", data), "card")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = bot.prompt(QUESTION)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": QUESTION}]
    ids = tokens.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    found = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, len(prompt) :].tolist()
    assert [found] == bot.greedy("ppo", [prompt])
    assert (tmp_path / "out" / "README.md").read_text() == "card"


@pytest.mark.parametrize(("method", "hub"), [("full", True), ("lora", False)])
def test_an_adapter_without_a_hub_model_below_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, hub: bool
) -> None:
    twin = (tiny_tokenizer(), plain) if hub else None
    data = write_run(tmp_path, monkeypatch, method, twin=twin)
    bot = opened(data, names=("ppo",), scored=False)
    with pytest.raises(ValueError, match=naming("ppo", "hub", "--adapter")):
        export.export_adapter(bot, "ppo", data)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_scalar_reward_model_is_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = write_run(tmp_path, monkeypatch, method)
    bot = opened(data)
    write_it = export.export_reward(bot, data, "float32", QUESTIONS)
    assert "8 of 8 scores equal" in export.in_draft(tmp_path / "out", write_it, "card")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    prompt = bot.prompt(QUESTION)
    rows = [[*prompt, *bot.codec.response_ids(text)] for text in ("네.", "서울입니다.")]
    scores = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert bot.reward_model is not None
    answers = [row[len(prompt) :] for row in rows]
    expected = bot.reward_model.score([(prompt, answers)], bot.codec).mean
    assert scores[0] - scores[1] == pytest.approx((expected[0] - expected[1]).item(), abs=1e-4)
    together = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=bot.codec.pad_id
    )
    mask = (together != bot.codec.pad_id).long()
    padded = model(input_ids=together, attention_mask=mask).logits[:, 0].tolist()
    assert padded == pytest.approx(scores, abs=1e-4)


def test_a_reward_model_that_scores_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    bot = opened(data)
    assert bot.reward_model is not None  # loaded before its file changes
    file = data / "rm" / "reward0" / "head.safetensors"
    save_file({k: 1.1 * v for k, v in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=naming("nothing was written")):
        export.in_draft(
            tmp_path / "out", export.export_reward(bot, data, "float32", QUESTIONS), "card"
        )
    assert not list(tmp_path.glob("out*"))


def test_other_reward_models_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path, monkeypatch, head="hybrid")
    bot = opened(data)
    with pytest.raises(ValueError, match=naming("hybrid", "rm.head=scalar")):
        export.export_reward(bot, data, "float32", QUESTIONS)
    file = data / "rm" / "reward.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "hybrid": False, "members": {"reward0": 1, "b": 2}}))
    with pytest.raises(ValueError, match=naming(2, "rm.members=1")):
        export.export_reward(bot, data, "float32", QUESTIONS)
    file.unlink()
    with pytest.raises(ValueError, match=naming(file)):
        export.export_reward(bot, data, "float32", QUESTIONS)


def test_weights_are_written_in_the_dtype_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    bot = opened(data, names=("ppo",), scored=False)
    for dtype, expected in WEIGHTS.items():
        if dtype != "mixed":
            export.write_model(merged("ppo", data), bot.codec, dtype, 32, tmp_path / dtype)
            model = AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto")
            assert model.dtype == expected
