"""A model's structure as a table: modules, shapes, parameter counts, trained share."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from stages.rlhf.model.quantized import shape_of
from stages.rlhf.model.roles import Roles

_LAYER = re.compile(r"\.\d+\.")
_WRAPPED = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)")


class Part(NamedTuple):
    """A parameter, summed over all layers."""

    name: str  # with * for the layer index
    shape: str  # per layer
    times: int
    parameters: int  # total


def parts(model: nn.Module) -> list[Part]:
    """The backbone's parameters in model order, without adapters; a tied head counts once."""
    found: dict[str, Part] = {}
    for name, shape, size in _backbone(model):
        known = found.get(name)
        times, total = (known.times, known.parameters) if known else (0, 0)
        found[name] = Part(name, shape, times + 1, total + size)
    return list(found.values())


def _backbone(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        plain = _LAYER.sub(".*.", _WRAPPED.sub("", name)).removesuffix(".weight")
        shape = shape_of(parameter)
        yield plain, " × ".join(map(str, shape)), shape.numel()


def summary(roles: Roles, role: str) -> dict[str, Any]:
    """Sizes of the backbone and of `role`'s adapter, and the trained share."""
    config = roles.model.config
    backbone = sum(part.parameters for part in parts(roles.model))
    adapter = sum(parameter.numel() for parameter in roles.parameters(role))
    lora = roles.model.peft_config[role]
    return {
        "architecture": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "vocabulary": config.vocab_size,
        "parameters": backbone,
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "trained_parameters": adapter,
        "trained_share": adapter / (backbone + adapter),
    }
