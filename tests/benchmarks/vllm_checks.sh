#!/usr/bin/env bash
# What does vLLM's own code say to exports? bash tests/benchmarks/vllm_checks.sh FOLDER...
#
# Runs, without a GPU and without its compiled kernels, the parts of vLLM 0.33.0 that read a folder:
# for a model its ModelConfig (architecture, length, dtype, sampling), for an adapter PEFTHelper and
# LoRAModel. Needs this project's packages and the package index; two minutes, 1.5 GB, removed.
set -euo pipefail
folders=()
for folder in "$@"; do folders+=("$(realpath "$folder")"); done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
pip download -q --no-deps vllm==0.33.0
unzip -q vllm-*.whl 'vllm/*.py' 'vllm/*.json' -d packages
pip install -q --target packages --no-deps  \
    apache_tvm_ffi==0.1.15.post2 cachetools==8.0.2 cbor2==6.3.0 einops==0.8.2 \
    llguidance==1.9.1 msgspec==0.22.0 openai_harmony==0.0.8 \
    partial_json_parser==0.2.1.1.post7 prometheus_client==0.26.0 py_cpuinfo==9.0.0 \
    pybase64==1.5.1 pyzmq==27.3.0 uvloop==0.23.0 xgrammar==0.2.9
cat >check.py <<'PYTHON'
import json, sys
from pathlib import Path

import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()
from vllm.config.lora import LoRAConfig
from vllm.config.model import ModelConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

LAYERS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
for folder in map(Path, sys.argv[1:]):
    if (folder / "adapter_config.json").is_file():
        helper = PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(LoRAConfig())
        lora = LoRAModel.from_local_checkpoint(
            str(folder), LAYERS, helper, device="cpu", lora_model_id=1
        )
        print(f"{folder.name}: rank {helper.r}, scale {helper.vllm_lora_scaling_factor},"
              f" {len(lora.loras)} layers")
        continue
    for dtype in ("auto", "float32"):
        config = ModelConfig(model=str(folder), dtype=dtype)
        print(f"{folder.name}: {config.architectures[0]}, {config.runner_type}, at most"
              f" {config.max_model_len} tokens, --dtype {dtype} is {config.dtype},"
              f" sampling {json.dumps(config.get_diff_sampling_param())}")
PYTHON
export PYTHONPATH="$work/packages" HF_HUB_OFFLINE=1 VLLM_TARGET_DEVICE=cpu VLLM_LOGGING_LEVEL=ERROR
python check.py "${folders[@]}" 2>log || { tail -n 5 log; exit 1; }
