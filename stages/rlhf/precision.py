"""The dtype of a model's weights, and the dtype of its matrix products.

`mixed` keeps weights in float32 and multiplies in bfloat16 if the hardware does so itself (AMX,
AVX512-BF16, CUDA from compute capability 8.0), which is about twice as fast for the tiny model;
elsewhere it is float32. `nf4` holds linear layers in 4 bits, all else and all products in bfloat16
(`model/quantized.py`).
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NF4 = "nf4"
WEIGHTS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "mixed": torch.float32,
    NF4: torch.bfloat16,  # of all that is not in 4 bits
}
SDPA_FLOAT32 = "sdpa_float32"


def device() -> str:
    """Where models are loaded and trained: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_gpu(dtype: str) -> None:
    """Raises ValueError for weights in bfloat16 on a GPU that only emulates it.

    Such a card is fast at float16, which is no dtype here: losses would have to be scaled, and
    activations of some families (Gemma) exceed its largest number.
    """
    if WEIGHTS[dtype] != torch.bfloat16 or device() != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"dtype is {dtype}, which {torch.cuda.get_device_name()} only emulates; expected mixed"
            " or float32, or a GPU of compute capability 8.0 or more"
        )


def autocasts(dtype: str) -> bool:
    """Whether a model of this `dtype` runs under bfloat16 autocast on `device()`."""
    if dtype != "mixed":
        return False
    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def products(device: Any, enabled: bool) -> torch.autocast:
    """An autocast context: matrix products in bfloat16 if `enabled`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def _sdpa_float32(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **more: Any
) -> Any:
    # the CPU's flash attention runs backward ten times slower in bfloat16 than in float32
    with products(query.device, enabled=False):
        return sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **more
        )


AttentionInterface.register(SDPA_FLOAT32, _sdpa_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
