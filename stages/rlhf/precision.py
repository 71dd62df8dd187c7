"""The dtype of a model's weights, and the dtype of its matrix products.

`mixed` keeps weights in float32 and multiplies in bfloat16 if the hardware supports it (AMX,
AVX512-BF16, CUDA), which is about twice as fast for the tiny model; elsewhere it is float32.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.float32}
SDPA_FLOAT32 = "sdpa_float32"


def autocasts(dtype: str) -> bool:
    """Whether a model of this `dtype` runs under bfloat16 autocast on this machine."""
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return dtype == "mixed" and (torch.cuda.is_available() or cpu)


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
