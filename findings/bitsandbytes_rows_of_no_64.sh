#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU with AVX-512: dequantize_4bit gives other weights than were quantised
# where a row is no multiple of the block of 64.
#
# Expected: blocks run over the flattened weight, as quantize_4bit makes them and as on a GPU, so that
#   a row may end within one.
# Instead: the CPU's kernel takes each row to begin with a scale of its own. No error and no warning;
#   the error of the weights is 2.6 times that of rounding. The same bytes, read as one row, are right.
# Seen (root mean square of the error, weights of standard deviation 1):
#   64 x 4288: 0.092, as one row 0.092
#   64 x 4304: 0.239, as one row 0.092
set -euo pipefail
if ! grep -qm1 avx512 /proc/cpuinfo; then
    echo "no AVX-512 here: nothing to see"
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
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

torch.manual_seed(0)
found = {}
for width in (4288, 4304):
    weight = torch.randn(64, width)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    rows = dequantize_4bit(packed, state)
    state.shape = torch.Size([1, weight.numel()])
    flat = dequantize_4bit(packed, state).view_as(weight)
    found[width] = [(one - weight).square().mean().sqrt().item() for one in (rows, flat)]
    print(f"64 x {width}: {found[width][0]:.3f}, as one row {found[width][1]:.3f}")
assert found[4288][0] == found[4288][1], "other widths are wrong, too"
assert found[4304][0] > 2 * found[4304][1], "fixed"
PYTHON
