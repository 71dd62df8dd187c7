#!/usr/bin/env bash
# The real run on one GPU within ten minutes; see tests/gpu/real_run.py. A machine that takes files
# of a bounded size gets the parts one by one; this refuses to start before all have come.
#
#   bash tests/gpu/real_run.sh PARTS DATA OUT [SEED]
set -euo pipefail
parts=${1:?folder of parts} data=${2:?folder of rows} out=${3:?folder for the figures}
cd "$(dirname "$0")/../.."
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec python3 -m tests.gpu.real_run run "$parts" "$data" "$out" --seed "${4:-0}"
