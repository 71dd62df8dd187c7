#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU with AVX512-BF16: after one forward in eval mode a Linear4bit passes no
# gradient to its input any more, in train mode either.
#
# Expected: an evaluation between two epochs of QLoRA changes nothing, as on a GPU.
# Instead: the first forward in eval mode packs the weights anew for a fast kernel without a backward,
#   and every later forward uses it. `x.grad` is None; adapters below the last layer stop learning.
#   No error: one UserWarning of torch, about an operator without an autograd kernel.
# Seen:
#   before an evaluation: gradient of 0.53 a number
#   after an evaluation: no gradient
set -euo pipefail
if ! grep -qm1 avx512_bf16 /proc/cpuinfo; then
    echo "no AVX512-BF16 here: nothing to see"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 bitsandbytes==0.50.2
cd "$work"
python - <<'PYTHON'
import torch
from bitsandbytes.nn import Linear4bit

torch.manual_seed(0)
layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
inputs = torch.randn(4, 64, dtype=torch.bfloat16)


def gradient():
    given = inputs.clone().requires_grad_()
    layer.train()(given).float().sum().backward()
    return given.grad


before = gradient()
print(f"before an evaluation: gradient of {before.abs().mean().item():.2f} a number")
layer.eval()(inputs)
after = gradient()
print("after an evaluation:", "no gradient" if after is None else "a gradient")
assert before is not None and after is None, "fixed"
PYTHON
