#!/bin/sh
# All benchmarks, one after the other, into docs/results/bench. Needs an idle core for about half an hour.
set -e
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results/bench
measure() {
    name=$1
    shift
    rcgrpo bench "$@" --json | tail -1 >"docs/results/bench/.$name"
    mv "docs/results/bench/.$name" "docs/results/bench/$name.json"
}
measure env env
measure decode decode
measure rollout rollout --pairs 5
measure step-small step --shape small
measure update-bfcl update --shape bfcl
measure step-bfcl step --shape bfcl
