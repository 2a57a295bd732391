#!/bin/bash
# tests/fuzz/fuzz.sh [SECONDS [TARGET...]] - fuzzes each target for SECONDS (default 60) with clang's
# libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer. build/fuzz keeps what it built,
# the corpus that grew, and findings (crash-*, leak-*, timeout-*): those belong into corpus.py and a
# test.
# Without clang there is tests/test_fuzz.py MUTATIONS SEED.
set -e
cd "$(dirname "$0")/../.."
command -v clang >/dev/null || { echo 'tests/fuzz/fuzz.sh: no clang' >&2; exit 77; }
seconds=${1:-60}
[ "$seconds" -gt 0 ] || { echo "tests/fuzz/fuzz.sh: SECONDS must be above 0" >&2; exit 2; }
shift || true
targets=${*:-safetensors json config tokenizer record textdata}
out=build/fuzz
mkdir -p "$out/objects"
python3 tests/fuzz/corpus.py "$out/corpus"
flags="-std=c11 -g -O1 -fno-omit-frame-pointer -D_POSIX_C_SOURCE=200809L -DFP8_CUDA=0 -I.
       -fsanitize=address,undefined -fno-sanitize-recover=all"
for source in core/*.c formats/*.c; do
    object=$out/objects/$(basename "$source" .c).o
    case $source in *_cuda.c) continue ;; esac
    [ "$object" -nt "$source" ] ||
        clang $flags -fsanitize=fuzzer-no-link -c "$source" -o "$object"
done
# A file may ask for more memory than there is: that is to end in a status.
export ASAN_OPTIONS=allocator_may_return_null=1
failed=0
for target in $targets; do
    clang $flags -fsanitize=fuzzer tests/fuzz/fuzz_$target.c "$out"/objects/*.o -o "$out/$target" \
        -lcjson -lutf8proc -lz -lm -lpthread
    echo "== $target, $seconds s"
    "$out/$target" -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
        -malloc_limit_mb=100000000 -print_final_stats=1 -artifact_prefix="$out/$target-" \
        "$out/corpus/$target" >"$out/$target.log" 2>&1 || failed=1
    grep -aE 'number_of_executed_units|ERROR|SUMMARY|Test unit written' "$out/$target.log" || true
done
exit $failed
