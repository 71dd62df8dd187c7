"""Our LoRA layer against peft's own, value and gradient; the adapter merged into copies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from stages.rlhf.model.lora import LoraLinear
from stages.rlhf.model.roles import POLICY, Roles
from tests.conftest import naming
from tests.model_fixtures import LORA, sft_roles, shake, tiny_gemma2, tiny_llama

INPUTS, OUTPUTS, RANK = 24, 40, 4


def layer(kind: Any, dtype: torch.dtype, bias: bool = False) -> Any:
    """A layer with two adapters of random weights, the same for either kind."""
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS, bias=bias).to(dtype).requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK)
    made = kind(base, "one", config, r=RANK, lora_alpha=2 * RANK)
    made.update_layer("two", RANK, lora_alpha=2 * RANK, config=config)
    for name in ("one", "two"):
        for part in (made.lora_A[name], made.lora_B[name]):
            nn.init.normal_(part.weight, std=0.3)
    return made


def outcome(made: Any, x: Tensor, autocast: bool) -> list[Tensor]:
    """Output, and the gradients of input, A and B."""
    mine = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = made(mine)
    (out.float() * torch.linspace(-1, 1, OUTPUTS)).sum().backward()
    name = made.active_adapters[0]
    found = [out, mine.grad, made.lora_A[name].weight.grad, made.lora_B[name].weight.grad]
    assert all(tensor is not None for tensor in found)
    return found


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("weights", "inputs", "autocast", "near"),
    [
        (torch.float32, torch.float32, False, 1e-6),
        (torch.float32, torch.float32, True, 2e-2),
        (torch.bfloat16, torch.bfloat16, False, 2e-2),
    ],
    ids=["float32", "mixed", "bfloat16"],
)
def test_output_and_gradients_are_pefts(
    weights: torch.dtype,
    inputs: torch.dtype,
    autocast: bool,
    near: float,
    bias: bool,
    name: str,
) -> None:
    x = torch.randn(3, 5, INPUTS, generator=torch.Generator().manual_seed(1)).to(inputs)
    found = []
    for kind in (LoraLinear, PeftLinear):
        made = layer(kind, weights, bias)
        made.set_adapter(name)
        found.append(outcome(made, x, autocast))
    for mine, other in zip(*found, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        off = (mine - other).abs().max() / other.abs().max()
        assert off <= near, f"off by {off:.1e} of the largest entry"


def test_a_layer_without_its_adapters_is_the_base_layer() -> None:
    made, x = layer(LoraLinear, torch.float32), torch.randn(3, INPUTS)
    assert not made(x).equal(made.base_layer(x))
    made.enable_adapters(False)
    assert made(x).equal(made.base_layer(x))


def test_float32_adapters_of_a_bfloat16_layer_multiply_in_bfloat16() -> None:
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = {}
    for name, kind in {"ours": LoraLinear, "peft": PeftLinear, "rounded": LoraLinear}.items():
        made = layer(kind, torch.bfloat16)
        for part in (made.lora_A["one"], made.lora_B["one"]):
            torch.manual_seed(2)
            part.weight.data = torch.randn(part.weight.shape) * 0.3
            if name == "rounded":
                part.bfloat16()
        found[name] = outcome(made, x, autocast=False)
    for mine, rounded in zip(found["ours"], found["rounded"], strict=True):
        assert mine.equal(rounded.to(mine.dtype))
    for mine, other in zip(found["ours"], found["peft"], strict=True):
        assert mine.dtype == other.dtype  # of A's and B's gradients: float32
        off = (mine - other).abs().max() / other.abs().max()
        assert off <= 2e-2, f"off by {off:.1e} of the largest entry"


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
def test_every_adapted_layer_of_a_backbone_is_ours(make: Any) -> None:
    roles = Roles(make(64), LORA)
    roles.add("one")
    layers = [m for m in roles.model.modules() if isinstance(m, PeftLinear)]
    assert len(layers) == 2 * 7
    assert all(type(layer) is LoraLinear for layer in layers)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_merged_adapter_says_the_same_and_leaves_no_trace(tmp_path: Path, autocast: bool) -> None:
    roles = sft_roles(tmp_path, "lora", "mixed" if autocast else "float32")
    roles.autocast = autocast
    roles.add(POLICY, like="sft")
    shake(roles, POLICY, seed=5)
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found: Tensor = roles.model(ids).logits
        return found

    before = {k: v.clone() for k, v in roles.model.state_dict().items()}
    with roles.use(POLICY):
        expected = logits()
    with roles.merged_copy(POLICY):
        found = logits()
    assert not found.equal(expected), "nothing was merged"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert all(v.equal(before[k]) for k, v in roles.model.state_dict().items())
    with roles.use("sft"):
        assert not torch.allclose(logits(), expected, atol=1e-2)
    with roles.use(POLICY):
        assert logits().equal(expected)


def test_bfloat16_is_never_merged(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "lora", "bfloat16")
    with roles.merged_copy("sft") as model:
        layers = [m for m in model.modules() if isinstance(m, LoraLinear)]
        assert layers
        assert all(layer.merged is None for layer in layers)


def test_no_role_is_taken_inside_a_merged_one(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "lora")
    roles.add(POLICY)
    inside = pytest.raises(AssertionError, match=naming("policy"))
    with roles.merged_copy("sft"), inside, roles.use(POLICY):
        pass
    with roles.use(POLICY):
        pass
