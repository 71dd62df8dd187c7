"""An adapter added to its backbone, in float32."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from stages.rlhf import tensors
from stages.rlhf.bot.models import folder_of
from stages.rlhf.model.store import load_causal_lm

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


def merged(name: str, data: Path) -> Any:
    """A model in float32, its adapter added to its weights."""
    model = load_causal_lm(backbone_of(name, data), "float32")
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
