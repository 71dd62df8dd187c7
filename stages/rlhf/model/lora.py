"""The arithmetic of peft's LoRA layer in fewer passes over memory.

peft takes the product with B, scales it and adds it to the base layer's output one after the other,
each a pass over a tensor as large as the output, and autograd does the same backwards: for small
models on a CPU that takes longer than LoRA's own products. Here the product is added to the output
as it is taken (BLAS gemm's alpha and beta). N tokens, I inputs, O outputs, rank r.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor
from torch.nn import functional


class LoraProduct(torch.autograd.Function):
    """x W' + scale (x A') B' [+ bias], for a frozen W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """(N, I), (O, I), (O,), (r, I), (O, r) -> (N, O), all of one dtype."""
        low = x @ a.T
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        x, weight, a, b, low = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, a) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[3]:
            return grad_x, None, None, None, None, None
        return grad_x, None, None, grad_low.T @ x, (grad.T @ low).mul_(ctx.scale), None


class LoraLinear(PeftLinear):
    """peft's layer; with one active adapter, its output comes from `LoraProduct`.

    Where dtypes differ, as a bfloat16 backbone's and its adapters' do, peft's own way is taken.
    """

    merged: Tensor | None = (
        None  # W + scale B A, in a copy that stands in for both, while it is set
    )

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Add an adapter to a copy of W, and use that until `merged` is None again."""
        a, b, weight = (m.weight for m in (self.lora_A[name], self.lora_B[name], self.base_layer))
        with torch.autocast(weight.device.type, enabled=False):
            self.merged = torch.addmm(weight, b, a, alpha=self.scaling[name])

    def forward(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        """(..., I) -> (..., O)."""
        base = self.get_base_layer()
        if self.disable_adapters and not self.merged:
            return base(x)
        if self.merged is not None:
            return functional.linear(x, self.merged, base.bias)
        active = self.active_adapters
        if args or more or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return super().forward(x, *args, **more)
        name = active[0]
        given = [x, base.weight, self.lora_A[name].weight, self.lora_B[name].weight]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            given = [tensor.to(dtype) for tensor in given]
        x, weight, a, b = given
        if not x.dtype == weight.dtype == a.dtype == b.dtype or base.weight.requires_grad:
            return super().forward(given[0], *args, **more)
        bias = None if base.bias is None else base.bias.to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = LoraProduct.apply(flat, weight, bias, a, b, self.scaling[name])
        return out.view(*x.shape[:-1], out.shape[-1])
