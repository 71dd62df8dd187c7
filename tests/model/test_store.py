"""Roles on one backbone, and models on disk: what is written, what is read, what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Lora
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.hub import fetch, write_pointer
from stages.rlhf.model import store
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import (
    check_card,
    load_causal_lm,
    load_sft,
    load_tokenizer,
    model_hash,
    save_card,
    weights_folder,
)
from tests.conftest import ROOT, naming
from tests.model_fixtures import (
    LORA,
    at_once,
    fake_hub,
    offline,
    pointed,
    save_base,
    save_sft,
    sft_roles,
    shake,
    tiny_gemma2,
    tiny_llama,
)
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

VOCAB = 40
IDS = torch.tensor([[5, 9, 11, 7, 30, 2], [8, 8, 4, 3, 12, 39]])


def logits(roles: Roles, name: str | None) -> Tensor:
    with torch.no_grad(), roles.use(name) as model:
        found: Tensor = model(IDS.to(model.device)).logits
    return found


def some_roles(dtype: torch.dtype = torch.float32) -> Roles:
    torch.manual_seed(0)
    return Roles(tiny_llama(VOCAB, dtype=dtype), LORA)


# ---- roles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(dtype: torch.dtype) -> None:
    roles = some_roles(dtype)
    with torch.no_grad():
        bare = roles.model(IDS).logits
    roles.add("a")
    assert logits(roles, "a").equal(bare)
    shake(roles, "a", seed=1)
    assert not logits(roles, "a").equal(bare)
    assert logits(roles, None).equal(bare)
    assert logits(roles, "a").equal(logits(roles, "a")), "switching back is not bitwise"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_bitwise_its_original_and_then_goes_its_own_way(dtype: torch.dtype) -> None:
    roles = some_roles(dtype)
    roles.add("sft")
    shake(roles, "sft", seed=1)
    roles.add("policy", like="sft")
    expected = logits(roles, "sft")
    assert logits(roles, "policy").equal(expected)
    shake(roles, "policy", seed=2)
    assert not logits(roles, "policy").equal(expected)
    assert logits(roles, "sft").equal(expected)


def test_only_the_adapter_in_training_trains() -> None:
    roles = some_roles()
    for name in ("a", "ab", "b"):  # one name holds another
        roles.add(name)
    linear_layers = 2 * 7
    assert len(roles.parameters("a")) == 2 * linear_layers
    every = [id(p) for name in ("a", "ab", "b") for p in roles.parameters(name)]
    assert len(set(every)) == len(every)
    with roles.use("a", train=True) as model:
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        assert trainable == {id(p) for p in roles.parameters("a")}
    with roles.use("b") as model:
        assert not any(p.requires_grad for p in model.parameters())


def test_a_foreign_state_is_refused() -> None:
    roles = some_roles()
    roles.add("a")
    state = roles.state("a")
    missing = dict(list(state.items())[1:])
    with pytest.raises(ValueError, match=naming("adapter a", 1, next(iter(state)))):
        roles.load_state("a", missing)
    with pytest.raises(ValueError, match=naming("adapter a", 1, "other")):
        roles.load_state("a", {**state, "other": torch.zeros(1)})


# ---- on disk


def test_an_adapter_comes_back_from_disk(tmp_path: Path) -> None:
    roles = some_roles()
    roles.add("a")
    shake(roles, "a", seed=1)
    roles.save("a", tmp_path / "a")
    again = some_roles()
    again.load("other name", tmp_path / "a")
    assert logits(again, "other name").equal(logits(roles, "a"))
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize(
    ("lora", "key", "saved", "wanted"),
    [(Lora(r=2, alpha=8), "r", 4, 2), (Lora(r=4, alpha=4), "lora_alpha", 8, 4)],
)
def test_an_adapter_of_another_shape_or_scale_is_refused(
    tmp_path: Path, lora: Lora, key: str, saved: int, wanted: int
) -> None:
    roles = some_roles()
    roles.add("a")
    roles.save("a", tmp_path)
    with pytest.raises(ValueError, match=naming(key, saved, wanted)):
        Roles(tiny_llama(VOCAB), lora).load("a", tmp_path)


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "adapter_model.safetensors")):
        some_roles().load("a", tmp_path)


SAVE = """
import sys
from pathlib import Path
from tests.model_fixtures import LORA, Roles, shake, tiny_llama
roles = Roles(tiny_llama(40), LORA)
roles.add("a")
shake(roles, "a", seed=1)
roles.save("a", Path(sys.argv[1]))
"""


def test_an_adapter_is_saved_in_the_same_bytes_by_every_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # sets come in another order there
    subprocess.run([sys.executable, "-c", SAVE, there], env=environment, cwd=ROOT, check=True)
    roles = Roles(tiny_llama(VOCAB), LORA)
    roles.add("a")
    shake(roles, "a", seed=1)
    roles.save("a", here)
    one, two = ({f.name: f.read_bytes() for f in x.iterdir()} for x in (here, there))
    assert one == two
    assert str(tmp_path) not in one["adapter_config.json"].decode()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_policy_starts_as_the_reference_bit_by_bit(tmp_path: Path, method: str) -> None:
    roles = sft_roles(tmp_path, method)
    assert roles.reference == (None if method == "full" else "sft")
    roles.add("policy", like=roles.reference)
    assert logits(roles, "policy").equal(logits(roles, roles.reference))
    base = load_causal_lm(tmp_path / "base", "float32")
    with torch.no_grad():
        own = base(IDS.to(base.device)).logits
        assert not own.equal(logits(roles, "policy")), "SFT is the base"


def test_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    sft = save_sft(base, tmp_path / "sft", "lora")
    card = check_card(sft, {"base": base})
    assert card["method"] == "lora"
    assert card["base_sha256"] == model_hash(base)
    other = save_base(tmp_path / "other", seed=5)
    facts = sft / "model.json", "base_sha256", model_hash(base), model_hash(other)
    with pytest.raises(ValueError, match=naming(*facts)):
        load_sft(other, sft, "float32", LORA)
    (base / "run.json").write_text("{}")  # of the run, not of the model
    check_card(sft, {"base": base})
    with (base / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=naming("model.json", "tokenizer_sha256")):
        check_card(sft, {"base": base})
    monkeypatch.setattr(store, "template_hash", lambda: "another")
    with pytest.raises(ValueError, match=naming("model.json", "chat_template_sha256", "another")):
        check_card(sft, {"base": base})
    with pytest.raises(ValueError, match=naming(tmp_path / "model.json")):
        check_card(tmp_path, {})


def test_a_reward_model_of_another_sft_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    sft, other = (save_sft(base, tmp_path / name, name) for name in ("lora", "full"))
    (tmp_path / "rm").mkdir()
    save_card(tmp_path / "rm", "reward", {"base": base, "sft": sft})
    check_card(tmp_path / "rm", {"base": base, "sft": sft})
    facts = "rm/model.json", "sft_sha256", model_hash(sft), model_hash(other)
    with pytest.raises(ValueError, match=naming(*facts)):
        check_card(tmp_path / "rm", {"base": base, "sft": other})


def test_every_file_of_a_model_counts_in_its_hash(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    expected = model_hash(base)
    (base / "model.json").write_text("{}")  # the card names others; it is not the model
    assert model_hash(base) == expected
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        changed = tmp_path / name
        shutil.copytree(base, changed)
        data = (changed / name).read_bytes()
        (changed / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert model_hash(changed) != expected, name


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path, "config.json", "pointer.json")):
        weights_folder(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    weights = base / "model.safetensors"
    weights.rename(base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=naming(base / "pytorch_model.bin", "pickle")):
        load_causal_lm(base, "float32")
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=naming(base, "no *.safetensors")) as error:
        load_causal_lm(base, "float32")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    rows = len(load_tokenizer(base))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["한라산"])
    tokenizer.save_pretrained(base)
    with pytest.raises(ValueError, match=naming(base, "한라산", rows, f"{rows} tokens")):
        load_tokenizer(base)


@pytest.mark.parametrize("offline", [False, True])
def test_a_tokenizer_saved_again_does_not_tell_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    base = save_base(tmp_path / "base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    load_tokenizer(base).save_pretrained(tmp_path / "saved")
    assert "local_files_only" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


# ---- the hub, offline


def test_a_pointer_leads_to_the_cached_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, base = pointed(tmp_path, monkeypatch)
    assert [file.name for file in base.iterdir()] == ["pointer.json"]
    assert weights_folder(base) == snapshot
    assert load_tokenizer(base).eos_token == "<eos>"
    model = load_causal_lm(base, "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("hub", ["org/name", "org/unknown"])
def test_a_hub_out_of_reach_is_like_being_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    snapshot = fake_hub(tmp_path, "org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    if hub == "org/name":
        assert fetch(hub, snapshot.name) == snapshot
    else:
        with pytest.raises(ValueError, match=naming("org/unknown", "0" * 40)):
            fetch(hub, "0" * 40)


def test_the_pointer_is_the_same_whatever_else_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, base = pointed(tmp_path, monkeypatch)
    before = (base / "pointer.json").read_bytes()
    for name in ("README.md", "pytorch_model.bin", ".gitattributes", "original/params.json"):
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text("more")
    write_pointer(base, "org/name", snapshot.name)
    assert (base / "pointer.json").read_bytes() == before
    assert b"README" not in before


def test_a_changed_or_lost_file_of_the_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, base = pointed(tmp_path, monkeypatch)
    weights = snapshot / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=naming(weights, base / "pointer.json")):
        load_causal_lm(base, "float32")
    weights.unlink()
    with pytest.raises(ValueError, match=naming(weights, base / "pointer.json")):
        load_causal_lm(base, "float32")


def test_weights_that_are_not_safetensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fake_hub(tmp_path / "cache", "org/name")
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    offline(monkeypatch, tmp_path / "cache")
    with pytest.raises(ValueError, match=naming("org/name", ".safetensors", "pytorch_model")):
        write_pointer(tmp_path / "base", "org/name", None)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_a_model_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=naming("org/unknown", revision or "latest")) as error:
        fetch("org/unknown", revision)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=naming("a/b/c", "latest")):
        fetch("a/b/c", None)


def test_gemma2_keeps_its_soft_capped_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gemma2(320)
    _, base = pointed(tmp_path, monkeypatch, model)
    loaded = load_causal_lm(base, "float32")
    ids = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    monkeypatch.setattr(store, "autocasts", lambda dtype: True)  # as on a CPU with bfloat16
    mixed = load_causal_lm(base, "mixed")
    with torch.no_grad():
        torch.testing.assert_close(mixed(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    codec = Codec(load_tokenizer(base))
    prompts = [codec.prompt_ids(question) for question in QUESTIONS]
    assert all(generate_all(loaded, prompts, codec, 4, at_once(3)))


def test_no_role_is_taken_inside_the_bare_backbone(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "full")
    roles.add("policy")
    inside = pytest.raises(AssertionError, match=naming("policy"))
    with roles.use(None), inside, roles.use("policy"):
        pass
    with roles.use("policy") as model:  # and the bare one is left behind
        assert model.active_adapter == "policy"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_copy_of_the_base_serves_sft_too_where_sft_is_an_adapter(
    tmp_path: Path, method: str
) -> None:
    expected = sft_roles(tmp_path, method)
    base, sft = tmp_path / "base", tmp_path / "sft"
    bare = store.load_base(base, "float32", LORA)
    ids = torch.tensor([[5, 6, 7]], device=bare.model.device)
    with torch.no_grad(), bare.use(None) as model:
        before = model(ids).logits
    roles = load_sft(base, sft, "float32", LORA, bare)
    assert (roles is bare) == (method == "lora")
    with torch.no_grad():
        with roles.use(roles.reference) as model, expected.use(expected.reference) as same:
            assert model(ids).logits.equal(same(ids).logits)
        with bare.use(None) as model:
            assert model(ids).logits.equal(before)
