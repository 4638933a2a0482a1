#!/usr/bin/env bash
# Checks and times everything on one GPU in under 10 minutes and writes docs/results/gpu/*.json after every piece.
# MODEL, PART and BUDGET choose less; wheels in .wheels (make gpu-wheels) fill in what this Python lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in .wheels/*.whl; do
  [ -e "$wheel" ] || continue
  name=$(basename "$wheel" | cut -d- -f1)
  # what the machine has itself is left alone
  "$python" -c "import importlib.metadata as m; m.version('$name')" 2>/dev/null && continue
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheel"
done
export PYTHONPATH="src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
"$python" -m rcgrpo.bench.gpu --model "${MODEL:-qwen2.5-7b}" --budget-seconds "${BUDGET:-500}" \
  --part "${PART:-correctness,decode,update,step,peers}" --out "${OUT_DIR:-docs/results/gpu}"
