#!/bin/bash
# tests/test_lint_outputs.sh - what we write breaks no rule of lint: every fixture, by `convert` in every
# dialect and scheme that can say how its weights are scaled, and by `run`, for every engine. Blocks that do
# not divide a model's sizes are the one exception, which lint is to find. ctest: slow
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
[ -d "$FP8_TEST_DATA/fixtures" ] || { echo "skipped: no FP8_TEST_DATA" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
count=0

fail() { echo "$*" >&2; failures=$((failures + 1)); }

# ids.npy: 2 rows of 16 ids below 32
make_ids() {
    local header="{'descr': '<i4', 'fortran_order': False, 'shape': (2, 16), }" i
    printf '\x93NUMPY\x01\x00\x76\x00'
    printf '%-117s\n' "$header"
    for ((i = 0; i < 32; i++)); do printf "\\x$(printf %02x $((i * 7 % 32)))\\x00\\x00\\x00"; done
}

# lint_of RULES WHAT: OUT has no finding but those of RULES, an extended regular expression
lint_of() {
    "$fp8calib" lint OUT --quiet >found 2>err
    local code=$?
    count=$((count + 1))
    [ $code = 0 ] || [ $code = 4 ] || fail "$2: lint: exit code $code: $(cat err)"
    grep -E '^(error|warning)' found | grep -Ev "$1" >others
    [ -s others ] && fail "$2: $(cat others)"
}

# written RULES WHAT COMMAND...
written() {
    local rules=$1 what=$2
    shift 2
    rm -rf OUT
    if ! "$fp8calib" "$@" -o OUT --quiet --device cpu >out 2>err; then
        grep -q 'cannot say how weights kept \[in, out\]' err || fail "$what: $(cat err)"
        return
    fi
    lint_of "$rules" "$what"
}

make_ids >ids.npy
for model in "$FP8_TEST_DATA"/fixtures/*/; do
    [ -f "$model/config.json" ] && [ -f "$model/model.safetensors" ] || continue
    name=$(basename "$model")
    rm -rf RUN
    "$fp8calib" run "$model" -o RUN --tokens ids.npy --no-eval --quiet --device cpu >out 2>err ||
        { fail "$name: run: $(cat err)"; continue; }
    rm -rf OUT && cp -r RUN OUT && lint_of none "$name: run"
    for dialect in compressed-tensors fp8 modelopt; do
        written none "$name: $dialect" convert "$model" --dialect $dialect
        written none "$name: run, $dialect" convert RUN --dialect $dialect
    done
    written none "$name: tensor" convert "$model" --scheme tensor
    written none "$name: keys and values alone" convert "$model" --scheme none \
        --record RUN/calibration.safetensors --fp8-attention none
    written block-size "$name: blocks" convert "$model" --scheme block
    written block-size "$name: deepseek" convert "$model" --dialect deepseek
    written block-size "$name: deepseek, powers of two" convert "$model" --dialect deepseek \
        --scales ue8m0
done
[ $count -ge 200 ] || fail "only $count checkpoints"
[ $failures = 0 ]
