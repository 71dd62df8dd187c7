"""An adapter added to its backbone, in float32."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from stages.rlhf import tensors
from stages.rlhf.bot.models import Bot, BotParams, folder_of
from stages.rlhf.model.quantized import copy_dequantised
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_causal_lm
from stages.rlhf.precision import NF4, WEIGHTS

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_of(name: str, data: Path) -> Path | None:
    """The folder of the adapter that makes a model, None where it has weights of its own."""
    folder = folder_of(name, data)
    return folder if (folder / ADAPTER).is_file() else None


def backbone_of(name: str, data: Path) -> Path:
    """The folder of a model's weights, or of those its adapter was trained on."""
    sft = folder_of("sft", data)
    return folder_of("base", data) if name == "base" or adapter_of("sft", data) else sft


def as_trained(folder: Path, dtype: str) -> Any:
    """A backbone in float32; where adapters were trained on its 4-bit weights (nf4), with those."""
    model = load_causal_lm(folder, "float32")
    if dtype == NF4:
        copy_dequantised(load_causal_lm(folder, NF4), model)
    return model


class ExactBot(Bot):
    """The models of data/ in float32, adapters apart, on the weights they were trained on.

    What an export is held against: in bfloat16, as those weights are used, digits are rounded that
    an export keeps.
    """

    @cached_property
    def _bare(self) -> Roles:
        return Roles(as_trained(self._at["base"], self.entry.dtype), self.entry.lora)


def to_export(params: BotParams, data: Path, names: Sequence[str], scored: bool) -> Bot:
    """The models that an export is held against. Raises ValueError as `Bot` does."""
    kind = ExactBot if WEIGHTS[params.base_model.dtype] == torch.bfloat16 else Bot
    return kind(params, data, names=names, scored=scored)


def merged(name: str, data: Path, dtype: str = "float32") -> Any:
    """A model in float32, its adapter added to the weights it was trained on, in `dtype`."""
    model = as_trained(backbone_of(name, data), dtype)
    adapter = adapter_of(name, data)
    if adapter is not None:
        merge(model, adapter)
    return model


@torch.no_grad()
def merge(model: Any, adapter: Path) -> None:
    """Add alpha / r * B A of an adapter's folder to the weights, in float32, in place.

    Raises ValueError for a tensor that has no layer.
    """
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    state = tensors.read(adapter / ADAPTER)
    scale = config["lora_alpha"] / config["r"]
    for key in sorted(key for key in state if ".lora_A." in key):
        path = key.removeprefix("base_model.model.").split(".lora_A.")[0]
        try:
            layer = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"{adapter / ADAPTER}: {key}: the model has no {path}") from error
        change = scale * (state[key.replace(".lora_A.", ".lora_B.")].float() @ state[key].float())
        layer.weight += (change.T if isinstance(layer, Conv1D) else change).to(layer.weight.device)
