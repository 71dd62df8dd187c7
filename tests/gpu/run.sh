#!/usr/bin/env bash
# Correctness and speed on one GPU within ten minutes; see tests/gpu/run.py.
#
#   bash tests/gpu/run.sh OUT
set -euo pipefail
out=${1:?folder for the figures}
cd "$(dirname "$0")/../.."
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec python3 -m tests.gpu.run "$out"
