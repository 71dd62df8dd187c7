#!/usr/bin/env bash
# transformers 5.23.0: importing the code of Llama alone also imports torch's compiler, its sharded
# tensors, sympy and scipy's optimisers, on a machine that compiles, shards and optimises nothing.
#
# Expected: `from transformers import LlamaForCausalLM` loads what a forward pass needs; transformers'
#   modules are lazy for that purpose.
# Instead: three lines run at import. generation/continuous_batching/cache.py decorates a method with
#   `torch.compiler.disable`, which imports torch._dynamo; distributed/sharding_utils.py imports
#   torch.distributed.tensor wherever torch was built with distributed, and with it sympy;
#   loss/loss_for_object_detection.py imports scipy.optimize wherever scipy is installed, and every
#   model imports all losses. No setting skips them, so every command-line program that answers from a
#   Llama waits for them at its start.
# Seen:
#   torch alone: of the four 0
#   with LlamaForCausalLM: of the four 4, more modules on top of torch than 1000: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 transformers==5.23.0 scipy==1.17.1
cd "$work"
cat > imports.py <<'PYTHON'
import sys

import torch  # noqa: F401

heavy = ("torch._dynamo.convert_frame", "torch.distributed.tensor", "sympy.core", "scipy.optimize")
before, alone = len(sys.modules), sum(name in sys.modules for name in heavy)
from transformers import LlamaForCausalLM  # noqa: E402, F401

found = sum(name in sys.modules for name in heavy)
many = len(sys.modules) - before > 1000
print(f"torch alone: of the four {alone}")
print(f"with LlamaForCausalLM: of the four {found}, more modules on top of torch than 1000: {many}")
assert (alone, found, many) == (0, 4, True)
PYTHON
python imports.py
