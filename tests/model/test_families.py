"""Every decoder family of transformers: the right numbers, or a refusal that names it."""

import json
import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from stages.rlhf.decoding.generation import generate
from stages.rlhf.decoding.static import StaticDecoder, called, usable
from stages.rlhf.decoding.tokens import cut_after
from stages.rlhf.model import sequences
from stages.rlhf.model.families import check_config, check_model, refusal
from stages.rlhf.model.packing import can_pack, pack, packed_response_logprobs, packed_states
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import (
    collate,
    context_window,
    hidden_states,
    next_logits,
    response_logprobs,
)
from stages.rlhf.model.store import load_causal_lm
from tests.conftest import ROOT, naming
from tests.model.family_twins import FAMILIES, VOCAB, twin, twin_config
from tests.model_fixtures import LORA, ids_codec, random_ids, shake

PACKED, APART = "runs; a prompt and its responses in one row", "runs; a row per response"
REFUSED = {  # outcome -> what the error says
    "refused: recurrent state": "recurrent state",
    "refused: encoder": "has an encoder",
    "refused: images or sounds": "images or sounds",
    "refused: not our logits": "its logits must be",
}
UNTRIED = "not tried: no small model"
PROMPTS = random_ids(2, 3, 9, VOCAB, 0)
ANSWERS = random_ids(4, 2, 7, VOCAB, 1)
NEW = 5


def outcomes() -> list[tuple[str, str]]:
    """Family and outcome, from the room's README."""
    text = (ROOT / "stages" / "rlhf" / "model" / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    known = (PACKED, APART, *REFUSED, UNTRIED)
    return [(f.strip("` "), o) for o, cell in rows if o in known for f in cell.split(", ")]


OUTCOMES = outcomes()
GROWING = re.findall(  # families without a static cache, from that room's README
    r"`(\w+)`",
    re.findall(
        r"come to the right logits;([^.]*)\.",
        (ROOT / "stages" / "rlhf" / "decoding" / "README.md").read_text(encoding="utf-8"),
    )[0],
)
RUNNING = [family for family, outcome in OUTCOMES if outcome in (PACKED, APART)]


def test_the_families_without_a_static_cache_are_counted() -> None:
    text = (ROOT / "stages" / "rlhf" / "decoding" / "README.md").read_text(encoding="utf-8")
    assert GROWING
    assert f"Of the {len(RUNNING)} families" in text
    assert f"steps of {len(RUNNING) - len(GROWING)} come" in text


def test_the_table_names_every_family_once() -> None:
    assert Counter(family for family, _ in OUTCOMES) == Counter(FAMILIES)
    for name in ("README.md", "README.ko.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        link = re.search(r"\[(\d+).?\]\(stages/rlhf/model/README.md#families\)", text)
        assert link, name
        assert int(link[1]) == len(RUNNING), name
        assert str(len(FAMILIES)) in text, name


@pytest.mark.parametrize("family", RUNNING)
def test_a_family_that_runs(family: str) -> None:
    model = twin(family)
    assert refusal(model.config) is None
    check_model(model)
    check_model(deepcopy(model).to(torch.bfloat16))  # nor refused for the digits of bfloat16
    assert context_window(model) >= 64
    with torch.no_grad():
        expected = [own_logprobs(model, p, a) for p, a in answered()]
        compare_logprobs(model, expected)
        assert can_pack(model) == ((family, PACKED) in OUTCOMES)
        if can_pack(model):
            groups = pack(PROMPTS, [ANSWERS[:2], ANSWERS[2:]], 0)
            close(packed_response_logprobs(model, packed_states(model, groups), groups), expected)
        compare_decoding(model)
        assert usable(model) == (family not in GROWING)
        assert usable(deepcopy(model).to(torch.bfloat16)) == (family not in GROWING)
        compare_adapters(model)


def answered() -> list[tuple[list[int], list[int]]]:
    return [(PROMPTS[i // 2], answer) for i, answer in enumerate(ANSWERS)]


def own_logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """By the model's own logits, in a row of its own."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)


def close(found: Tensor, expected: list[Tensor]) -> None:
    for row, own in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(own)], own, rtol=0, atol=2e-5)
        assert row[len(own) :].eq(0).all()


def compare_logprobs(model: Any, expected: list[Tensor]) -> None:
    """Of right-padded rows, whatever stands in the padding; and the logits of the next token."""
    rows = collate(*map(list, zip(*answered(), strict=True)), 7)
    hidden = hidden_states(model, rows)
    close(response_logprobs(model, hidden, rows), expected)
    whole = PROMPTS[0] + ANSWERS[0]
    torch.testing.assert_close(
        next_logits(model, hidden[:1, len(whole) - 1]),
        model(torch.tensor([whole])).logits[:, -1].float(),
        rtol=0,
        atol=1e-4,
    )


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """What transformers generates without EOS and without padding."""
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=VOCAB + 1,
        pad_token_id=0,
    )
    return [int(i) for i in ids[0, len(prompt) :]]


def compare_decoding(model: Any) -> None:
    """With an EOS that ends the first answer, which then leaves the cache, before the second."""
    theirs = [greedy(model, prompt) for prompt in PROMPTS]
    eos_id = theirs[0][1]
    expected = [cut_after(row, eos_id) for row in theirs]
    assert generate(model, PROMPTS, ids_codec(0, eos_id), NEW) == expected
    if usable(model):
        columns = max(map(len, PROMPTS)) + NEW
        static = StaticDecoder(model, 0, eos_id, len(PROMPTS), columns, NEW, 0.0, called)
        assert static.generate(PROMPTS, None) == expected


def linear_layers(model: Any) -> dict[str, Any]:
    """All but the LM head, and but the router of Phi-MoE, which is derived from one."""
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    routers = {n for n, m in layers.items() if type(m).__name__ == "PhimoeTopKRouter"}
    return {n: m for n, m in layers.items() if m is not head and n not in routers}


def compare_adapters(model: Any) -> None:
    """Against W + scale B A put into every linear layer of a copy."""
    by_hand, ids = deepcopy(model), torch.tensor([PROMPTS[0] + ANSWERS[0]])
    before = model(ids).logits
    roles = Roles(model, LORA)
    roles.add("a")
    shake(roles, "a", seed=3, size=0.1)
    state = {k.removeprefix("base_model.model."): v for k, v in roles.state("a").items()}
    layers = linear_layers(by_hand)
    assert set(state) == {f"{name}.lora_{part}.weight" for name in layers for part in "AB"}
    for name, layer in layers.items():
        if model.config.model_type == "longcat_flash" and name.endswith("router.classifier"):
            continue  # its weight is read without calling it, so that its adapter does nothing
        product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        product = product * LORA.alpha / LORA.r
        layer.weight.add_(product.T if isinstance(layer, Conv1D) else product)
    expected = by_hand(ids).logits
    assert not expected.equal(before)
    for role in (roles.use("a"), roles.merged_copy("a")):
        with role as adapted:
            torch.testing.assert_close(adapted(ids).logits, expected, rtol=0, atol=1e-4)
    with roles.use(None) as bare:
        assert bare(ids).logits.equal(before)


@pytest.mark.parametrize(("family", "outcome"), [(f, o) for f, o in OUTCOMES if o in REFUSED])
def test_a_family_that_is_refused(family: str, outcome: str) -> None:
    if outcome == "refused: not our logits":
        for dtype in (torch.float32, torch.bfloat16):
            model = twin(family, dtype)
            assert refusal(model.config) is None
            with pytest.raises(ValueError, match=naming(model.config.model_type, REFUSED[outcome])):
                check_model(model)
        return
    try:
        config = twin_config(family)
    except (StrictDataclassError, ValueError, AttributeError, NotImplementedError):
        config = CONFIG_MAPPING[family]()
    found = refusal(config)
    assert found is not None
    assert REFUSED[outcome] in found


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        *(("granite", {"scale": 1.0}), ("cohere", {"scale": 1.0}), ("hyperclovax", {"scale": 2.0})),
        *(("gemma2", {"softcap": 0.0}), ("phi", {"bias": None})),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_not_the_models_is_refused(
    family: str, wrong: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = twin(family, dtype)
    head = replace(sequences.head_of(model), **wrong)
    monkeypatch.setattr(sequences, "head_of", lambda _: head)
    with pytest.raises(ValueError, match=naming(family, "LM head", "standard deviations")):
        check_model(model)


def test_a_cache_of_padded_rows_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = twin("llama")
    monkeypatch.setattr(DynamicCache, "batch_select_indices", lambda cache, rows: None)
    with pytest.raises(ValueError, match=naming("llama", "KV cache")):
        check_model(model)


def test_states_of_another_width_than_hidden_size_are_refused() -> None:
    model = twin("llama")
    model.config.hidden_size = 64
    with pytest.raises(ValueError, match=naming("llama", 32, 64)):
        check_model(model)


# ---- from a folder


@pytest.mark.parametrize(
    ("family", "cause"), [("bert", "LM head"), ("rwkv", "recurrent state"), ("bart", "KV cache")]
)
def test_a_refused_model_is_named_with_its_folder(family: str, cause: str, tmp_path: Path) -> None:
    twin(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=naming(tmp_path, family, cause)) as error:
        load_causal_lm(tmp_path, "float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"model_type": "exaone"}, ("exaone", "transformers")),
        (
            {"model_type": "exaone", "auto_map": {"AutoConfig": "configuration_exaone.Config"}},
            ("exaone", "configuration_exaone.Config", "never run"),
        ),
        ({}, ("None", "transformers")),
        ({"model_type": "vit"}, ("vit", "no causal language model")),
    ],
)
def test_an_unknown_architecture_is_one_sentence(
    config: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=naming(file, *facts)) as error:
        check_config(tmp_path)
    assert "\n" not in str(error.value)


def test_code_beside_a_known_architecture_is_not_run(tmp_path: Path) -> None:
    twin("llama").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    assert type(load_causal_lm(tmp_path, "float32")).__name__ == "LlamaForCausalLM"
