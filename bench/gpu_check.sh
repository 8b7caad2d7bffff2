#!/usr/bin/env bash
# Everything that wants a GPU, in one command and ten minutes. Usage: bench/gpu_check.sh [OUT] [options of gpu_check]
# OUT is the folder for the JSON (default $OUT, else ./gpu_check); weights and bundles go to $WORK (default a folder
# under /tmp), for they are gigabytes. Wants python3 with torch and onnxruntime-gpu; says at once what it lacks.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-./gpu_check}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$1
  shift
fi
export PYTHONPATH="$here/runtime:$here/export:$here/quant:$here/bench${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m edgeclip_bench.gpu.check "$out" --work "${WORK:-/tmp/edgeclip-gpu-check}" "$@"
