"""4-bit weights (`dtype: nf4`): QLoRA (Dettmers et al. 2023), by bitsandbytes.

A frozen backbone's linear layers are held in NF4, blocks of 64 weights with a scale each, and the
scales in 8 bits in turn (double quantisation); embeddings, norms and LM head are bfloat16. A
product dequantises its layer to bfloat16, in the backward pass once more, so no gradient is of
weights that are not those of the forward. Adapters stay float32.

Different here: transformers loads, but TRL is kept from rounding adapters to bfloat16, and
bitsandbytes from packing weights in place for inference on a CPU, after which gradients end there.
N tokens, I inputs, O outputs, rank r.
"""

import importlib
import json
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from stages.rlhf.model.lora import LoraLinear
from stages.rlhf.precision import NF4, WEIGHTS, device
from stages.rlhf.runs import sharding

BLOCK = 64  # weights of one scale


class QuantizedLoraLinear(LoraLinear):
    """LoRA over a 4-bit layer: its products in bfloat16, adapters and their gradients in float32.

    peft's own layer would widen the inputs and copy the outputs.
    """

    def merge(self, name: str) -> None:
        """Raises TypeError: an adapter is lost in the rounding of 4-bit weights."""
        raise TypeError("an adapter is never merged into 4-bit weights")

    def adapted(self, x: Tensor, name: str) -> Tensor:
        """(..., I) -> (..., O)."""
        base, dtype = self.get_base_layer(), WEIGHTS[NF4]
        a, b = (part[name].weight.to(dtype) for part in (self.lora_A, self.lora_B))
        flat, out = x.reshape(-1, x.shape[-1]).to(dtype), base(x)
        rows = out.reshape(-1, out.shape[-1]).to(dtype)
        found = torch.addmm(rows, flat @ a.T, b.T, alpha=self.scaling[name])
        return found.view(out.shape).to(out.dtype)


def options(folder: Path, dtype: str) -> dict[str, Any]:
    """What `from_pretrained` is given besides for a model in `dtype`; nothing but for nf4.

    Raises ValueError where bitsandbytes is not installed, where the weights are quantised already,
    and where they would be sharded.
    """
    if dtype != NF4:
        return {}
    _bitsandbytes(str(folder))
    if sharding.wanted():
        raise ValueError(
            f"{folder}: 4-bit weights (dtype: nf4) are held whole by each process, and"
            f" {sharding.SHARD} asks to shard them"
        )
    file = folder / "config.json"
    if json.loads(file.read_text(encoding="utf-8")).get("quantization_config"):
        raise ValueError(
            f"{file}: its weights are quantised already; dtype: nf4 expects them as trained"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=WEIGHTS[NF4],
    )
    where = torch.cuda.current_device() if device() == "cuda" else "cpu"
    return {"quantization_config": config, "device_map": {"": where}}


def _bitsandbytes(model: str) -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            f"{model}: dtype: nf4 needs bitsandbytes, which cannot be imported ({error});"
            ' pip install -e ".[qlora]"'
        ) from error


def quantised_layers(model: Any) -> list[Any]:
    """The modules whose weights are 4-bit."""
    return [m for m in model.modules() if _state(m._parameters.get("weight")) is not None]


def layer_types(model: Any) -> tuple[type, ...]:
    """The classes of 4-bit layers in a model: none, or bitsandbytes' one."""
    return tuple({type(module) for module in quantised_layers(model)})


def trainable_through(model: Any) -> Any:
    """A model that transformers or `quantise` made 4-bit, as adapters are trained on it.

    Raises ValueError where it has no layer in 4 bits, or one that bitsandbytes reads wrongly here.
    """
    layers = quantised_layers(model)
    if not layers:
        raise ValueError("dtype: nf4 found no linear layer that it could quantise")
    for layer in layers:
        if layer.in_features % BLOCK and not _read_rightly(layer):
            raise ValueError(
                f"bitsandbytes reads 4-bit weights of {layer.in_features} inputs wrongly on this"
                f" {device()}; dtype: nf4 expects layers with a multiple of {BLOCK}"
            )
        # on a CPU with AVX512-BF16 inference would pack the weights into a product that autograd
        # does not know: from then on no gradient would pass the layer
        layer.support_avx512bf16_for_cpu = False
    if hasattr(model, "is_loaded_in_4bit"):
        del model.is_loaded_in_4bit  # where TRL finds it, it rounds adapters to bfloat16
    return model


def quantise(model: Any) -> Any:
    """A model in memory with its linear layers in 4 bits, but the LM head, on `device()`."""
    made = _bitsandbytes(type(model).__name__).nn
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            sizes = module.in_features, module.out_features
            layer = made.Linear4bit(
                *sizes, bias=False, compute_dtype=WEIGHTS[NF4], quant_type=NF4, device="meta"
            )
            weight = module.weight.detach().to(WEIGHTS[NF4])
            layer.weight = made.Params4bit(weight, quant_type=NF4, module=layer)
            layer.bias, layer.source_cls = module.bias, nn.Linear
            model.set_submodule(name, layer)
    return trainable_through(model.to(device()))


def _read_rightly(layer: Any) -> bool:
    """Whether a layer's weights are those of its blocks, which run through all of its rows.

    On a CPU with AVX-512, 0.50.2 begins a block with each row. In one row it cannot.
    """
    flat = copy(layer.weight.quant_state)
    flat.shape = torch.Size([1, layer.in_features * layer.out_features])
    return bool(_dequantised(layer.weight, flat).view(-1).equal(dequantised(layer).view(-1)))


def _state(weight: Any) -> Any:
    """How a weight is quantised; None where it is not."""
    return getattr(weight, "quant_state", None)


def shape_of(parameter: Tensor) -> torch.Size:
    """A parameter's shape, as it is before it is packed into 4 bits."""
    state = _state(parameter)
    return parameter.shape if state is None else torch.Size(state.shape)


def dequantised(layer: Any) -> Tensor:
    """(O, I) bfloat16: the weights that a 4-bit layer multiplies by."""
    return _dequantised(layer.weight, layer.weight.quant_state)


def _dequantised(weight: Tensor, state: Any) -> Tensor:
    found: Tensor = _bitsandbytes("a model").functional.dequantize_4bit(weight.data, state)
    return found


@torch.no_grad()
def copy_dequantised(source: Any, model: Any) -> None:
    """Give `model` the weights of the same model in 4 bits, each as it multiplies, in place."""
    for name, parameter in source.named_parameters():
        weight: Tensor = parameter
        if _state(parameter) is not None:
            layer = source.get_submodule(name.rpartition(".")[0])
            weight = dequantised(layer)
            weight = weight.T if layer.source_cls is Conv1D else weight
        model.get_parameter(name).copy_(weight)
