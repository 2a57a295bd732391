#!/bin/sh
# examples/quickstart.sh - builds fp8calib (installing what is missing through apt) and runs its main job
# on the sample model: calibrate, write an FP8 checkpoint, compare. Output: build/sample-model-FP8.
set -e
cd "$(dirname "$0")/.."
. .ci/dependencies.sh
need_build_packages
mkdir -p build
if ! { cmake -S . -B build/quickstart -DFP8_TESTS=OFF &&
       cmake --build build/quickstart -j "$jobs"; } >build/quickstart.log 2>&1; then
    tail -n 30 build/quickstart.log >&2
    exit 1
fi
exec build/quickstart/fp8calib run examples/sample-model -o build/sample-model-FP8 --force \
    --eval-data examples/evaluation.txt "$@"
