"""One frozen backbone in memory, with an adapter per role."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from stages.rlhf import tensors
from stages.rlhf.config.models import Lora
from stages.rlhf.model.lora import LoraLinear
from stages.rlhf.model.quantized import QuantizedLoraLinear, layer_types
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.precision import products
from stages.rlhf.runs.sharding import is_sharded

LINEAR = (torch.nn.Linear, Conv1D, FalconLinear)  # and not what else is derived from them
POLICY, VALUE = "policy", "value"  # the adapters that PPO trains


class _LinearLayers(LoraConfig):
    """A config whose targets stay as they were given.

    For mixtures of experts peft would replace dense layers called up_proj, down_proj or gate by the
    experts' own parameters.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        moved = name == "target_modules" and name in self.__dict__
        if not moved and not (name == "target_parameters" and value):
            super().__setattr__(name, value)


def lora_config(lora: Lora, backbone: Any) -> LoraConfig:
    """LoRA on every linear layer but the LM head, no dropout. Experts stay as they are.

    So do layers that are derived from a linear one and compute more, like Phi-MoE's router.
    """
    head, packed = backbone.get_output_embeddings(), layer_types(backbone)
    config = _LinearLayers(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules={
            name
            for name, module in backbone.named_modules()
            if type(module) in (*LINEAR, *packed) and module is not head
        },
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    classes: dict[type, type] = dict.fromkeys(
        packed, QuantizedLoraLinear
    )  # before what they are of
    config._register_custom_module(classes | {torch.nn.Linear: LoraLinear})
    return config


class Roles:
    """A backbone and the adapters that turn it into policy, reference, reward or value model.

    `reference` is the adapter of the SFT model, or None if SFT trained the full backbone: then the
    backbone without adapters is the reference.
    """

    def __init__(self, backbone: Any, lora: Lora, autocast: bool = False) -> None:
        self._config = lora_config(lora, backbone)
        self.autocast = autocast
        self.model = backbone  # a PeftModel once it has an adapter
        self.reference: str | None = None
        self._bare = False  # inside `use(None)`: all adapters are disabled
        self._merged = False  # inside `merged_copy`

    def add(self, name: str, like: str | None = None) -> None:
        """Add an adapter: a copy of adapter `like`, or the identity."""
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(name, self._config)
        else:
            self.model = PeftModel(self.model, self._config, adapter_name=name)
        if like is not None:
            self.load_state(name, self.state(like))

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Copies of an adapter's tensors, on the CPU, without the adapter's name."""
        state = get_peft_model_state_dict(self.model, adapter_name=name)
        return {k: v.detach().cpu().clone() for k, v in sorted(state.items())}

    def load_state(self, name: str, state: dict[str, torch.Tensor]) -> None:
        """Overwrite an adapter. Raises ValueError for missing or unexpected tensors."""
        own = set(get_peft_model_state_dict(self.model, adapter_name=name))
        if own != set(state):
            odd = sorted(own ^ set(state))
            raise ValueError(f"adapter {name}: {len(odd)} tensors do not match, e.g. {odd[0]}")
        set_peft_model_state_dict(self.model, state, adapter_name=name)

    def parameters(self, name: str) -> list[torch.nn.Parameter]:
        """The trainable tensors of an adapter, in a fixed order."""
        own = (f".lora_A.{name}.", f".lora_B.{name}.")
        return [p for n, p in self.model.named_parameters() if any(part in n for part in own)]

    @contextmanager
    def use(self, name: str | None, train: bool = False) -> Iterator[Any]:
        """The model in the role of adapter `name`; None is the bare backbone.

        Exiting a nested role does not restore the outer one. Roles cannot be nested inside None,
        where adapters are disabled, or inside a merged role.
        """
        assert not self._bare, f"role {name} requested while all adapters are disabled"
        assert not self._merged, f"role {name} requested inside a merged role"
        bare = isinstance(self.model, PeftModel) and name is None
        if name is not None:
            self.model.set_adapter(name, inference_mode=not train)
        self._bare = bare
        try:
            with (
                products(self.model.device, self.autocast),
                self.model.disable_adapter() if bare else nullcontext(),
            ):
                yield self.model
        finally:
            self._bare = False

    @contextmanager
    def merged_copy(self, name: str) -> Iterator[Any]:
        """The model in the role of adapter `name`, for many small steps without gradients.

        float32 weights are replaced by copies with the adapter merged: one matmul instead of three.
        In bfloat16 merging would lose most of the adapter's precision, so adapters stay separate.
        """
        with self.use(name) as model:
            layers = [m for m in model.modules() if isinstance(m, LoraLinear)]
            try:
                if model.dtype == torch.float32 and not is_sharded(decoder_of(model)):
                    for layer in layers:
                        layer.merge(name)
                self._merged = True
                yield model
            finally:
                self._merged = False
                for layer in layers:
                    layer.merged = None

    def save(self, name: str, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, byte-identical every time."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state(name), folder / "adapter_model.safetensors")
        config = self.model.peft_config[name].to_dict()
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        plain["base_model_name_or_path"] = None  # model.json has its hash; no path here
        plain["inference_mode"] = True
        text = json.dumps(plain, indent=2, sort_keys=True, default=str)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def load(self, name: str, folder: Path) -> None:
        """Add an adapter from its folder. Raises ValueError if it does not fit the backbone."""
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise ValueError(f"{weights}: no such file; expected an adapter")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        for key, here in {"r": self._config.r, "lora_alpha": self._config.lora_alpha}.items():
            if config[key] != here:
                raise ValueError(f"{weights}: trained with {key} {config[key]}, not {here}")
        self.add(name)
        state = tensors.read(weights)
        try:
            self.load_state(name, state)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from error
