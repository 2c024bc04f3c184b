#!/usr/bin/env bash
# What only a GPU can show, in at most nine minutes: the tests marked `gpu`, then the wavefront of an 8 B shape with
# 128,256 outputs: seconds, and the share of the matrix rate that the device reaches.
#
#   bench/gpu.sh [--dry-run]     from the checkout, in its environment; --dry-run checks all of it on a CPU, small
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
shape=(--hidden 4096 --intermediate 14336 --blocks 32 --heads 32 --kv-heads 8 --vocabulary 128256 --tokens 32768
  --length 2048 --timed-groups 16 --fused)
if [[ ${1:-} = --dry-run ]]; then
  export HPCMPQ_DRY_RUN=1
  shape=(--hidden 64 --intermediate 96 --blocks 2 --heads 4 --kv-heads 2 --vocabulary 5000 --tokens 64 --length 32
    --timed-groups 2 --fused)
else
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi
timeout 180 "$python" -m pytest -q -n 0 -m gpu tests/gpu
timeout 330 "$python" -m bench.gpu_wavefront "${shape[@]}"
