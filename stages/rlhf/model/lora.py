"""peft's LoRA layer with fewer passes over memory.

peft multiplies by B, scales, and adds to the base layer's output in separate steps, each a pass
over a tensor as large as the output, and autograd does the same in the backward: for small models
on a CPU that takes longer than LoRA's matmuls. Here the matmul accumulates into the output (BLAS
gemm's alpha and beta). N tokens, I inputs, O outputs, rank r.
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

    Products are in the backbone's dtype, as under autocast: adapters and their gradients stay in
    float32. peft's own forward would widen the inputs, and pass over outputs in float32.
    """

    merged: Tensor | None = None  # while set: a copy of W + scale B A, used instead of both

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Merge an adapter into a copy of W, used until `merged` is None again."""
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
        return self.adapted(x, active[0])

    def adapted(self, x: Tensor, name: str) -> Tensor:
        """(..., I) -> (..., O), with one adapter."""
        base = self.get_base_layer()
        given = [x, base.weight, self.lora_A[name].weight, self.lora_B[name].weight]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            given = [tensor.to(dtype) for tensor in given]
        x, weight = given[:2]
        a, b = (tensor.to(weight.dtype) for tensor in given[2:])
        if x.dtype != weight.dtype or base.weight.requires_grad:
            return super().forward(given[0])
        bias = None if base.bias is None else base.bias.to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = LoraProduct.apply(flat, weight, bias, a, b, self.scaling[name])
        return out.view(*x.shape[:-1], out.shape[-1])
