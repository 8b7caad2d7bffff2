#!/usr/bin/env bash
# All that needs a GPU, in one command of about ten minutes. Usage: bench/gpu_check.sh [OUT]
# OUT is the folder for the JSON and each step's words (default $OUT, else ./gpu_check); weights and bundles go to
# $WORK (default a folder under /tmp), for they are gigabytes, and what is there already is not made again. Wants
# python3 ($PYTHON) with torch and onnxruntime-gpu; says at once what it lacks. A step that fails or takes too long
# does not stop the others. DEVICE=cpu TINY=1 is the same on a CPU with small towers, to test this file.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-${OUT:-./gpu_check}}
work=${WORK:-/tmp/edgeclip-gpu-check}
device=${DEVICE:-cuda}
edgeclip=("${PYTHON:-python3}" -m edgeclip)
export PYTHONPATH="$here/runtime:$here/export:$here/quant:$here/bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
tiny=() quick=() soak=(--seconds 45)
if [ "${TINY:-}" ]; then tiny=(--tiny) quick=(--seconds 0.01 --no-compile) soak=(--seconds 2 --largest-px 100); fi
mkdir -p "$out" "$work"
failed=0

step() { # NAME SECONDS ARGUMENTS of edgeclip...: run it, within its time and what is left of 570 s
  local name=$1 limit=$2 began=$SECONDS how=done
  shift 2
  [ "$limit" -le $((570 - SECONDS)) ] || limit=$((570 - SECONDS))
  if [ "$limit" -le 0 ]; then how="no time was left"; else
    timeout "$limit" "${edgeclip[@]}" "$@" >"$out/$name.txt" 2>&1 || how="ended with $?"
  fi
  printf '%-12s %6d s  %s\n' "$name" $((SECONDS - began)) "$how"
  [ "$how" = done ] || { failed=1; return 1; }
}
make() { # NAME SECONDS FOLDER ARGUMENTS...: a step that makes a folder, without which nothing else can be done
  local name=$1 limit=$2 folder=$3
  shift 3
  [ -e "$folder" ] || step "$name" "$limit" "$@" || { echo "without $name nothing else can be done" >&2; exit 1; }
}

"${PYTHON:-python3}" -c "import torch, onnxruntime, safetensors, PIL, psutil, scipy, onnx_ir, onnxscript
if '$device' == 'cuda':
    assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers(), 'this onnxruntime has no CUDA'
    assert torch.cuda.is_available(), 'PyTorch sees no GPU'" || exit 2
make checkpoint 120 "$work/checkpoint" bench random-checkpoint "$work/checkpoint" ${tiny[@]+"${tiny[@]}"}
make export 180 "$work/bundle" export "$work/checkpoint" "$work/bundle" --target cuda
make narrow 180 "$work/fp16" quantize "$work/bundle" "$work/fp16" --to fp16
step check 60 check "$work/fp16" --device "$device"
step graphs 300 bench gpu-graphs "$work/checkpoint" "$work/bundle" "$work/fp16" --device "$device" \
  --out "$out/graphs.json" ${quick[@]+"${quick[@]}"}
step soak 75 bench memory-soak "$work/fp16" --device "$device" "${soak[@]}" --out "$out/soak.json"
cat "$out/graphs.txt" "$out/soak.txt" 2>/dev/null
exit $failed
