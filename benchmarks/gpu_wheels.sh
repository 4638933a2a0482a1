#!/usr/bin/env bash
# Wheels of what the GPU benchmark imports beside torch, for Python 3.12 on x86-64 Linux, into .wheels (about 5 MB).
set -euo pipefail
cd "$(dirname "$0")/.."
pin() { grep -i "^$1==" constraints.txt || echo "$1"; }
names=(peft pydantic pydantic_core annotated-types typing-inspection typing_extensions accelerate psutil)
wanted=()
for name in "${names[@]}"; do wanted+=("$(pin "$name")"); done
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 -d .wheels "${wanted[@]}"
ls .wheels
