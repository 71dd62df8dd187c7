"""4-bit weights: what is held, what is computed from it, and what training leaves alone.

The references are independent: NF4 as the paper's appendix E lists it, and float32 models that are
given the dequantised weights.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stages import sft
from stages.rlhf.config.whole import Params
from stages.rlhf.model import quantized
from stages.rlhf.model.lora import LoraLinear
from stages.rlhf.model.quantized import QuantizedLoraLinear, copy_dequantised, quantised_layers
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs
from stages.rlhf.model.store import load_base, load_causal_lm, load_sft
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.precision import device
from stages.rlhf.records import write_jsonl
from stages.rlhf.report.structure import parts
from stages.rlhf.reward.model import new_reward_model
from stages.rlhf.reward.training import train
from stages.rlhf.runs import sharding
from stages.rlhf.train import tiled_head
from stages.rlhf.train.sft_trainer import ManifestTrainer, Phase, trainer_config
from tests import reward_fixtures
from tests.conftest import ROOT, naming
from tests.model_fixtures import (
    IDS,
    LORA,
    differing,
    ppo_trainer,
    sampled,
    save_base,
    shake,
    tiny_gemma2,
    tiny_llama,
)
from tests.sft_fixtures import ROWS, STRANGERS, micro

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra qlora")
VOCAB = 300
PROMPTS = [[5, 9, 11, 7], [8, 4, 3, 12, 39, 30]]
RESPONSES = [[30, 17, 60, 2], [200, 131, 2]]
NF4 = [  # Dettmers et al. 2023, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
]


def rounded(weight: Tensor) -> Tensor:
    """The nearest of NF4's values, in blocks of 64 with a scale each, which is not rounded here."""
    code, blocks = torch.tensor(NF4, device=weight.device), weight.float().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[..., None] - code).abs().argmin(-1)
    return (code[nearest] * scale).view_as(weight)


def saved(folder: Path, width: int = 64, spread: float = 0.2) -> Path:
    """A bfloat16 twin on disk."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        initializer_range=spread,
        **IDS,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Path]:
    return saved(tmp_path / "twin")


def logprobs(model: Any) -> Tensor:
    """(B, R) of the responses, as PPO computes them."""
    rows = collate(PROMPTS, RESPONSES, 0, model.device)
    found: Tensor = response_logprobs(model, hidden_states(model, rows), rows)
    return found


def whole(model: Any) -> Tensor:
    """(B, T, V) log-probabilities."""
    ids = torch.tensor([[5, 9, 11, 7, 30, 2], [8, 8, 4, 3, 12, 39]], device=model.device)
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits.float(), -1)


def gradients(roles: Roles, name: str) -> list[Tensor]:
    """Of an adapter, for the responses' log-probabilities."""
    with roles.use(name, train=True) as model:
        logprobs(model).sum().backward()
    found = [p.grad.clone() for p in roles.parameters(name)]
    for parameter in roles.parameters(name):
        parameter.grad = None
    return found


def off(mine: Tensor, other: Tensor) -> float:
    """Root mean square of the differences, over that of `other`."""
    mine, other = mine.detach(), other.detach()
    return float((mine - other).square().mean().sqrt() / other.square().mean().sqrt())


# ---- what is held


@installed
def test_linear_layers_are_in_4_bits_and_the_rest_is_bfloat16(twin: Path) -> None:
    model = load_causal_lm(twin, "nf4")
    layers = quantised_layers(model)
    assert len(layers) == 2 * 7
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
        assert layer.compute_dtype == torch.bfloat16
        assert layer.weight.dtype == torch.uint8
        assert 2 * layer.weight.numel() == layer.in_features * layer.out_features
    packed = {id(layer.weight) for layer in layers}
    others = [p for p in model.parameters() if id(p) not in packed]
    assert {p.dtype for p in others} == {torch.bfloat16}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


@installed
def test_weights_are_rounded_to_nf4(twin: Path) -> None:
    """Scales in 8 bits and bfloat16 add 2 % of a standard deviation at most (measured: .020)."""
    model, full = load_causal_lm(twin, "nf4"), load_causal_lm(twin, "float32")
    for name, module in full.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            found = quantized.dequantised(model.get_submodule(name)).float()
            worst = (found - rounded(module.weight)).abs().max() / module.weight.std()
            assert worst < 0.03, name
            assert 0.05 < off(found, module.weight) < 0.12, name  # NF4 itself: .09


@installed
@pytest.mark.parametrize("make", [tiny_gemma2, "gpt2"])
def test_other_families_load(tmp_path: Path, make: Any) -> None:
    if make == "gpt2":  # whose layers are Conv1D: weights the other way round
        config = GPT2Config(vocab_size=VOCAB, n_embd=64, n_head=2, n_layer=2, n_positions=64, **IDS)
        torch.manual_seed(0)
        config.initializer_range = 0.2
        made = GPT2LMHeadModel(config).eval()
    else:
        made = tiny_gemma2(VOCAB, width=64)
    made.bfloat16().save_pretrained(tmp_path)
    roles = load_base(tmp_path, "nf4", LORA)
    other = load_causal_lm(tmp_path, "float32")
    assert off(whole(other), whole(roles.model)) > 0.02, "nothing was rounded"
    copy_dequantised(roles.model, other)
    assert off(whole(other), whole(roles.model)) < 0.01
    count = len(quantised_layers(roles.model))
    roles.add("a")
    assert sum(type(m) is QuantizedLoraLinear for m in roles.model.modules()) == count > 0


@installed
def test_sizes_are_those_of_the_model_not_of_its_packed_bytes(
    twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, packed = (load_causal_lm(twin, dtype) for dtype in ("bfloat16", "nf4"))
    assert parts(plain) == parts(packed)
    inner = sum(p.numel() for p in plain.model.parameters()) - VOCAB * 64
    for at, expected in ((inner, True), (inner + 1, False)):
        monkeypatch.setattr(tiled_head, "RECOMPUTED_FROM", at)
        assert tiled_head.recomputes(plain) is expected
        assert tiled_head.recomputes(packed) is expected


# ---- what is refused


BLOCKED = """
import sys
from pathlib import Path
sys.modules["bitsandbytes"] = None
from stages.rlhf.model.store import load_base
from tests.model_fixtures import LORA
for dtype in ("float32", "bfloat16", "mixed"):
    load_base(Path(sys.argv[1]), dtype, LORA).add("a")
try:
    load_base(Path(sys.argv[1]), "nf4", LORA)
except ValueError as error:
    print("refused:", error)
"""


def test_only_nf4_needs_bitsandbytes(twin: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, twin], cwd=ROOT, check=True, capture_output=True, text=True
    )
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("refused:"))
    for fact in (str(twin), "dtype: nf4", "bitsandbytes", 'pip install -e ".[qlora]"'):
        assert fact in line


@installed
def test_bitsandbytes_gets_no_compiled_code_from_the_hub(tmp_path: Path) -> None:
    """Which it asks of the package kernels when it is imported on a CPU with AVX512-BF16."""
    fake = "from pathlib import Path\n\ndef get_kernel(*given, **named):\n    Path('got').touch()\n"
    (tmp_path / "kernels.py").write_text(fake)
    command = [sys.executable, "-c", "import stages.rlhf.model.roles, bitsandbytes"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert not (tmp_path / "got").exists()
    assert "kernels" not in done.stderr


@installed
def test_weights_that_are_quantised_already_are_refused(twin: Path) -> None:
    config = json.loads((twin / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (twin / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=naming("config.json", "quantised already", "nf4")):
        load_causal_lm(twin, "nf4")


@installed
def test_4_bit_weights_are_not_sharded(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sharding.SHARD, "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=naming(twin, "nf4", sharding.SHARD)):
        load_causal_lm(twin, "nf4")


@installed
def test_layers_that_bitsandbytes_reads_wrongly_are_refused(tmp_path: Path) -> None:
    """Blocks of 64 run through rows of 96; on a CPU with AVX-512 0.50.2 takes other scales."""
    import bitsandbytes

    folder = saved(tmp_path, width=96)
    weight = load_causal_lm(folder, "float32").model.layers[0].mlp.up_proj.weight.to(device())
    packed = bitsandbytes.functional.quantize_4bit(weight.bfloat16(), quant_type="nf4")
    found = bitsandbytes.functional.dequantize_4bit(*packed)
    if off(found.float(), rounded(weight.cpu()).to(device())) < 0.01:
        assert quantised_layers(load_causal_lm(folder, "nf4"))
    else:
        with pytest.raises(ValueError, match=naming(folder, "96 inputs", "multiple of 64")):
            load_causal_lm(folder, "nf4")


@installed
def test_a_model_without_a_layer_to_quantise_is_refused() -> None:
    with pytest.raises(ValueError, match=naming("nf4", "no linear layer")):
        quantized.trainable_through(tiny_llama(VOCAB))


# ---- what is computed


@installed
def test_log_probabilities_are_near_those_in_bfloat16(tmp_path: Path) -> None:
    """Of a twin with weights as wide as a trained model's: .02. Measured: .043 nats, r = .987."""
    folder = saved(tmp_path, width=256, spread=0.02)
    plain, packed = (whole(load_causal_lm(folder, dtype)) for dtype in ("bfloat16", "nf4"))
    assert 0.001 < (plain - packed).abs().mean() < 0.06
    assert torch.corrcoef(torch.stack([plain.flatten(), packed.flatten()]))[0, 1] > 0.98


@installed
@pytest.mark.parametrize(
    ("dtype", "nearest", "near"), [("bfloat16", 1e-3, 0.03), ("float32", 0.01, 0.06)]
)
def test_gradients_are_those_of_a_model_with_the_dequantised_weights(
    twin: Path, dtype: str, nearest: float, near: float
) -> None:
    """Of every adapter matrix, after passes without gradients, too.

    Measured: in bfloat16 log-probabilities of the same bits and gradients within .015 of their
    size, in float32 .003 and .040, as that model itself in bfloat16.
    """
    roles, reference = (load_base(twin, one, LORA) for one in ("nf4", dtype))
    copy_dequantised(roles.model, reference.model)
    for one in (roles, reference):
        one.add("a")
        shake(one, "a", seed=1, size=0.1)
    first = gradients(roles, "a")
    with torch.no_grad(), roles.use("a") as mine, reference.use("a") as other:
        assert off(logprobs(mine), logprobs(other)) < nearest
    again = gradients(roles, "a")
    for found, later, expected in zip(first, again, gradients(reference, "a"), strict=True):
        assert found.dtype == torch.float32
        assert found.equal(later), "a pass without gradients changed those after it"
        assert off(found, expected) < near


@installed
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_with_its_adapter_is_pefts(bias: bool) -> None:
    import bitsandbytes
    from peft import LoraConfig
    from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for kind in (QuantizedLoraLinear, PeftLinear4bit):
        torch.manual_seed(0)
        base = bitsandbytes.nn.Linear4bit(
            64, 96, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        base.to("cpu").requires_grad_(False)
        base.support_avx512bf16_for_cpu = False
        config = LoraConfig(r=4, lora_alpha=8)
        made = kind(base, "a", config=config, r=4, lora_alpha=8)
        for part in (made.lora_A["a"], made.lora_B["a"]):
            torch.nn.init.normal_(part.weight, std=0.3)
        mine = x.clone().requires_grad_()
        out = made(mine)
        (out.float() * torch.linspace(-1, 1, 96)).sum().backward()
        found.append([out, mine.grad, made.lora_A["a"].weight.grad, made.lora_B["a"].weight.grad])
    for mine, other in zip(*found, strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert off(mine.float(), other.float()) < 0.01


@installed
def test_a_new_adapter_changes_nothing_and_none_is_merged(twin: Path, tmp_path: Path) -> None:
    roles = load_base(twin, "nf4", LORA)
    bare = whole(roles.model)
    roles.add("a")
    with roles.use("a") as model:
        assert whole(model).equal(bare)
    shake(roles, "a", seed=1)
    with roles.use("a") as model:
        expected = whole(model)
    assert not expected.equal(bare)
    with roles.merged_copy("a") as model:
        assert whole(model).equal(expected)
        assert all(m.merged is None for m in model.modules() if isinstance(m, LoraLinear))
    with roles.use(None) as model:
        assert whole(model).equal(bare)
    layers = [m for m in roles.model.modules() if isinstance(m, LoraLinear)]
    assert {type(layer) for layer in layers} == {QuantizedLoraLinear}
    with pytest.raises(TypeError, match="4-bit"):
        layers[0].merge("a")
    roles.save("a", tmp_path / "a")
    again = load_base(twin, "nf4", LORA)
    again.load("other", tmp_path / "a")
    with again.use("other") as model:
        assert whole(model).equal(expected)


@installed
def test_a_model_in_memory_is_quantised_as_one_that_is_loaded(twin: Path) -> None:
    model = quantized.quantise(load_causal_lm(twin, "bfloat16"))
    loaded = load_causal_lm(twin, "nf4")
    assert whole(model).equal(whole(loaded))
    assert len(quantised_layers(model)) == len(quantised_layers(loaded))


# ---- what is trained


def held(model: Any) -> dict[str, Tensor]:
    """Copies of the backbone's tensors, with what 4-bit weights are read by."""
    found = {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" not in n}
    for i, layer in enumerate(quantised_layers(model)):
        state = layer.weight.quant_state
        found |= {f"{i}.scales": state.absmax.clone(), f"{i}.outer": state.state2.absmax.clone()}
    return found


def sft_params(dtype: str) -> Params:
    params = micro(method="lora", epochs=2, learning_rate=0.02)
    entry = params.models["micro"].model_copy(update={"dtype": dtype})
    return params.model_copy(update={"models": {"micro": entry}})


@pytest.mark.parametrize(
    ("dtype", "expected"), [("nf4", True), ("bfloat16", True), ("float32", False)]
)
def test_sft_multiplies_as_in_bfloat16(tmp_path: Path, dtype: str, expected: bool) -> None:
    config = trainer_config(sft_params(dtype), tmp_path, Phase(ROWS, 1, 0))
    assert config.bf16 is expected


def trained_sft(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two epochs of SFT; the losses, and what was held before and after."""
    save_base(folder / "base", dtype=torch.bfloat16, width=64)
    write_jsonl(folder / "rows" / "train.jsonl", ROWS)
    write_jsonl(folder / "rows" / "validation.jsonl", STRANGERS)
    params = sft_params("nf4")
    found: dict[str, Any] = {"dtypes": set()}
    fit, step = sft.fit, ManifestTrainer.training_step

    def stepped(self: Any, model: Any, *given: Any, **named: Any) -> Any:
        found["dtypes"] |= {p.dtype for p in model.parameters() if p.requires_grad}
        return step(self, model, *given, **named)

    def watched(model: Any, *given: Any) -> dict[str, float]:
        before = held(model)
        losses = fit(model, *given)
        found["changed"] = differing(before, held(model))
        return losses

    patch.setattr(sft, "fit", watched)
    patch.setattr(ManifestTrainer, "training_step", stepped)
    places = [folder / name for name in ("base", "rows", "groups.jsonl", "sft", "work")]
    return found | sft.train(params, *places)


@installed
def test_every_stage_trains_adapters_and_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = trained_sft(tmp_path, monkeypatch)
    assert isfinite(losses["loss"])
    assert isfinite(losses["eval_loss"])
    assert losses["changed"] == []
    assert losses["dtypes"] == {torch.float32}, "TRL rounded the adapter"
    roles = load_sft(tmp_path / "base", tmp_path / "sft", "nf4", LORA)
    assert all(v.any() for k, v in roles.state("sft").items() if "lora_B" in k)
    with roles.use("sft") as model:
        expected = whole(model)
    before = held(roles.model)

    model = new_reward_model(roles, "hybrid", 1, "tests")
    start = roles.state("reward0")
    rm, groups = reward_fixtures.knobs(), reward_fixtures.GROUPS
    codec, scale = reward_fixtures.CODEC, reward_fixtures.settings()
    figures = train(model, groups, groups[:3], rm, scale, codec, "tests", work=tmp_path / "rm")
    assert isfinite(figures["reward0"]["loss"])
    assert len(differing(start, roles.state("reward0"))) == len(start)
    assert {p.dtype for p in roles.parameters("reward0")} == {torch.float32}
    assert differing(before, held(roles.model)) == []
    with roles.use("sft") as bare:
        assert whole(bare).equal(expected), "training the reward model changed SFT"

    trainer = ppo_trainer(tmp_path, "lora", "nf4")
    check_ppo(trainer)


def check_ppo(trainer: PpoTrainer) -> None:
    """Two steps: finite, of adapters alone, and the first one's ratios are exactly 1."""
    roles, before = trainer.roles, held(trainer.roles.model)
    starts = {name: roles.state(name) for name in (POLICY, VALUE)}
    rollout = sampled(trainer)
    with torch.no_grad(), roles.use(POLICY) as model:
        rows = list(range(4))
        part = rollout.sequences[rows]
        again = response_logprobs(model, hidden_states(model, part), part)
    mask = part.response_mask
    assert off(again[mask], rollout.old_logprobs[rows][:, : again.shape[1]][mask]) < 0.05
    stats = trainer.learn(1, rollout)
    assert stats.finite
    assert differing(before, held(roles.model)) == []
    for name, start in starts.items():
        assert len(differing(start, roles.state(name))) == len(start), name
        assert {p.dtype for p in roles.parameters(name)} == {torch.float32}


@pytest.mark.gpu
@installed
def test_a_gpu_comes_to_what_the_cpu_comes_to(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device() == "cuda"
    found = []
    for where in ("cuda", "cpu"):
        monkeypatch.setattr(quantized, "device", lambda where=where: where)
        monkeypatch.setattr("stages.rlhf.model.store.device", lambda where=where: where)
        roles = load_base(twin, "nf4", LORA)
        assert roles.model.device.type == where
        roles.add("a")
        shake(roles, "a", seed=1, size=0.1)
        with torch.no_grad(), roles.use("a") as model:
            of = logprobs(model).cpu()
        found.append([of, *(g.cpu() for g in gradients(roles, "a"))])
    for gpu, cpu in zip(*found, strict=True):
        assert off(gpu, cpu) < 0.04
