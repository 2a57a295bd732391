#!/bin/sh
# tests/run.sh - passes the tests: installs what is missing (apt, and PyPI packages into a folder under
# build/), builds with warnings as errors, for CPU and, where nvcc is, CUDA, runs every test, then the
# CPU tests again under AddressSanitizer and UndefinedBehaviorSanitizer.
# FP8_TEST_DATA names the folder of models, fixtures and texts (default ../shared); what needs it and
# does not find it is skipped and named, like GPU tests where there is no GPU.
set -e
cd "$(dirname "$0")/.."
. .ci/dependencies.sh
need_build_packages
need_tool bash bash
need_tool pkg-config pkg-config
need_tool python3 python3 python3-venv
mkdir -p build

# Oracles of other people's making; tests that miss one are skipped.
oracles=build/oracles/bin/python3
if [ ! -x "$oracles" ] || ! "$oracles" -c 'import numpy, safetensors, ml_dtypes, tokenizers' 2>/dev/null
then
    python3 -m venv build/oracles 2>/dev/null || need_packages python3-venv
    python3 -m venv build/oracles &&
        build/oracles/bin/pip install -q --disable-pip-version-check \
            numpy safetensors ml_dtypes tokenizers ||
        echo "tests/run.sh: the Python oracles could not be installed; their tests will be skipped"
fi
[ -x "$oracles" ] && FP8_PYTHON=$PWD/$oracles && export FP8_PYTHON

build() { # folder, options...
    folder=$1
    shift
    cmake -S . -B "$folder" -DFP8_WERROR=ON "$@" >"$folder.log" 2>&1 &&
        cmake --build "$folder" -j "$jobs" >>"$folder.log" 2>&1 ||
        { grep -E 'error|Error|warning' "$folder.log" | head -n 40 >&2; tail -n 20 "$folder.log" >&2
          return 1; }
}

echo "== build: as this machine is (CUDA where nvcc is)"
build build/test
echo "== build: CPU only, with sanitizers and calls that fail when told to"
build build/sanitize -DFP8_CUDA=OFF -DFP8_SANITIZE=ON -DFP8_FAULTS=ON \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo
echo "== tests"
ctest --test-dir build/test --output-on-failure "$@"
echo "== CPU tests under AddressSanitizer and UndefinedBehaviorSanitizer"
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir build/sanitize --output-on-failure -L cpu -LE slow "$@"
