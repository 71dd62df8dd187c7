"""The dtype of a model's weights, and the dtype of its matrix products.

`mixed` keeps weights in float32 and multiplies in bfloat16 if the hardware does so itself (AMX,
AVX512-BF16, CUDA from compute capability 8.0), which is about twice as fast for the tiny model;
elsewhere it is float32.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.float32}
SDPA_FLOAT32 = "sdpa_float32"


def device() -> str:
    """Where models are loaded and trained: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
