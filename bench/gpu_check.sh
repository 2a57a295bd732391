#!/bin/bash
# bench/gpu_check.sh BUILD OUT [PART...] - everything that is to be seen on a GPU, in one call: each step's log
# in OUT/NAME.log, one line a step on stdout, exit status 1 when a step failed. BUILD is a finished CUDA build;
# FP8_TEST_DATA holds models, fixtures and texts (default ../shared). Without PARTs all of them, in this order:
#   tests      every GPU test, side by side                    minutes with one core a test, seconds of GPU time
#   alone      what only shows with the GPU for itself: no memory left on it, none kept by an engine
#   sanitize   compute-sanitizer over the tests that are small enough for it, side by side
#   spine      run and eval on four models, CUDA, with the simulation of the same scheme
#   attention  bench attention, flux and decode     linear  bench linear, linear-large     quant  bench quant, block
#   peers      the same shapes through PyTorch, in a process of its own (needs torch)
# Checks run side by side, timings alone: nothing else may be on the GPU then. FP8_CHECK_SECONDS (default 120)
# bounds a step; one that ran out is a failure, and its children are ended with it.
set -u
build=$(cd "${1:?BUILD}" && pwd)
mkdir -p "${2:?OUT}" && out=$(cd "$2" && pwd)
shift 2
cd "$(dirname "$0")/.." || exit 1
source_dir=$PWD
export FP8_TEST_DATA=${FP8_TEST_DATA:-$source_dir/../shared} FP8_SOURCE_DIR=$source_dir
export FP8_BINARY_DIR=$build FP8CALIB=$build/fp8calib FP8_BUILD_CUDA=1 FP8_SANITIZED=0 PYTHON=${PYTHON:-python3}
limit=${FP8_CHECK_SECONDS:-120}
: >"$out/summary.txt"

step() { # name, command...: the limit ends its children too (timeout signals the whole group)
    local name=$1 begin=$SECONDS status
    shift
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    case $status in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    124 | 137) verdict="FAILED: ran past $limit s" ;;
    *) verdict="FAILED: exit status $status" ;;
    esac
    echo "$name: $verdict, $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
}

tests() {
    for program in "$build"/tests/gpu_*; do
        [ "$(basename "$program")" = gpu_fused ] && continue
        [ -f "$program" ] && [ -x "$program" ] && step "$(basename "$program")" "$program" &
    done
    for i in 0 1 2 3 4 5; do # cuDNN compiles a plan for each of its 303 cases
        step "gpu_fused-$i" "$build/tests/gpu_fused" $((i * 51)) $((i * 51 + 51)) &
    done
    for script in tests/gpu_*.sh; do
        [ -f "$script" ] && step "$(basename "$script" .sh)" bash "$script" &
    done
    wait
}

alone() {
    for program in gpu_oom gpu_engine; do
        FP8_GPU_ALONE=1 step "alone-$program" "$build/tests/$program"
    done
}

sanitize() { # cuDNN's kernels are not ours to judge: racecheck reports them, synccheck stops in them
    # First what looks at it: m memcheck, r racecheck, s synccheck. Racecheck credits an arrival at a barrier to
    # the lane that makes it alone. Synccheck has room for few barriers unless told.
    for tool in memcheck "racecheck --kernel-name-exclude kernel_substring=cudnn" \
        "synccheck --num-cuda-barriers 65536 --kernel-name-exclude kernel_substring=cudnn"; do
        while read -r tools program argument; do
            [ -x "$build/tests/$program" ] || continue
            case $tools in *"${tool:0:1}"*) ;; *) continue ;; esac
            step "${tool%% *}-$program${argument:+-${argument// /-}}" compute-sanitizer --tool $tool \
                --error-exitcode 9 "$build/tests/$program" $argument &
        done <<EOF
mrs gpu_attention_descales
mrs gpu_attention_masks
mrs gpu_attention_runs
mrs gpu_calibrate_fixtures
mrs gpu_cast
mrs gpu_append_decode few
mrs gpu_decode everything
mrs gpu_decode_pages few
mrs gpu_export
ms gpu_flash_later 1
mr gpu_flash_later 6
mrs gpu_flash_options bad
mrs gpu_flash_options graph
mrs gpu_flash_options layouts 0 2
mrs gpu_flash_options layouts 1 2
mrs gpu_flash_options lies
mrs gpu_flash_options quick-lengths 0 3
mrs gpu_flash_options quick-lengths 1 3
mrs gpu_flash_options quick-lengths 2 3
mrs gpu_flash_options types 0 2
mrs gpu_flash_options types 1 2
mr gpu_flash_options rotated
mrs gpu_flash_options wave 1 6
mr gpu_flash_options wave 2 6
mrs gpu_kv_append few
mrs gpu_ops few
mrs gpu_produce few
mrs gpu_skinny few
mr gpu_skinny_gated few
EOF
        wait
    done
}

spine() {
    step spine "$PYTHON" bench/spine.py "$build" "$FP8_TEST_DATA" "$out/spine" --devices cuda --simulate
}

attention() {
    step bench-attention "$FP8CALIB" bench attention --rounds 25 --force \
        --csv "$out/attention.csv" --svg "$out/attention.svg"
    step bench-attention-bias "$FP8CALIB" bench attention --shape 2,16,16,128,2048,causal,bias
    step bench-flux "$FP8CALIB" bench flux --rounds 25 --force --csv "$out/flux.csv"
    step bench-decode "$FP8CALIB" bench decode --rounds 25 --force --csv "$out/decode.csv"
}

linear() {
    for mode in linear linear-large; do
        "$FP8CALIB" help bench | grep -qE "[ |]$mode[][| ]" || continue
        step "bench-$mode" "$FP8CALIB" bench "$mode" --force --csv "$out/$mode.csv"
    done
}

quant() {
    step bench-quant "$FP8CALIB" bench quant --force --csv "$out/quant.csv"
    step bench-block "$FP8CALIB" bench block --force --csv "$out/block.csv"
}

peers() {
    step peers-attention "$PYTHON" bench/attention_peers.py attention --rounds 15
    step peers-decode "$PYTHON" bench/decode_peers.py
    step peers-flux "$PYTHON" bench/attention_peers.py flux --rounds 15
    FP8_LIBRARY=$build/libfp8rt.so step peers-linear "$PYTHON" bench/linear_peers.py --shapes large
    step peers-block "$PYTHON" bench/block_peers.py
}

for part in "${@:-tests alone sanitize spine attention linear quant peers}"; do
    for name in $part; do
        case $name in
        tests | alone | sanitize | spine | attention | linear | quant | peers) "$name" ;;
        *)
            echo "bench/gpu_check.sh: part '$name', expected tests, alone, sanitize, spine, attention, linear, quant or peers" >&2
            exit 2
            ;;
        esac
    done
done
! grep -q FAILED "$out/summary.txt"
