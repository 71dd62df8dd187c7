#!/usr/bin/env bash
# peft 0.21.2: the shape of an adapter on an FSDP2-sharded layer depends on the name of the mesh's
# dimension; with a name other than "fsdp" lora_B is made for a shard, and the forward fails.
#
# Expected: fully_shard keeps shares in storage alone; in the forward a layer is whole, so adapters
#   have its whole size. torch gives the dimension no name, and its tutorials several ("shard", "dp").
# Instead: a weight that is a DTensor counts as tensor-parallel, and the adapter gets the local shape,
#   unless all of the mesh's names are "fsdp". No warning; torch reports shapes that do not match when
#   the first batch comes.
# Seen, two processes, layer of 8 x 8, r = 2:
#   mesh "fsdp": lora_B (8, 2), forward (1, 8)
#   mesh "cards": lora_B (4, 2), The size of tensor a (8) must match the size of tensor b (4) ...
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cd "$work"
cat > shard.py <<'PYTHON'
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

distributed.init_process_group("gloo")
found = {}
for name in ("fsdp", "cards"):
    model = nn.Sequential(nn.Linear(8, 8, bias=False)).requires_grad_(False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=(name,)))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model)
    shape = tuple(model[0].lora_B["default"].weight.shape)
    try:
        said = f"forward {tuple(model(torch.ones(1, 8)).shape)}"
    except RuntimeError as error:
        said = str(error)
    found[name] = shape
    if distributed.get_rank() == 0:
        print(f'mesh "{name}": lora_B {shape}, {said}', flush=True)
assert found == {"fsdp": (8, 2), "cards": (4, 2)}, "fixed"
distributed.destroy_process_group()
PYTHON
OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node=2 shard.py
