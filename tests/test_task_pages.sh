#!/bin/bash
# tests/test_task_pages.sh - every command of the pages docs/TASK_*.md, in their order, on the sample
# model and, where the test data is there, on a small mixture. ctest: slow
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
mixture=$FP8_TEST_DATA/fixtures/mixtral
failures=0
count=0

# ids.npy: 4 rows of 32 ids below 512
make_ids() {
    local header="{'descr': '<i4', 'fortran_order': False, 'shape': (4, 32), }" i
    printf -v header '%-117s\n' "$header"
    printf '\x93NUMPY\x01\x00\x76\x00%s' "$header"
    for ((i = 0; i < 128; i++)); do
        printf "\\x$(printf %02x $((i * 37 % 256)))\\x$(printf %02x $((i % 2)))\\x00\\x00"
    done
}

page() {
    local line code
    cd "$work" && rm -rf page && mkdir page && cd page || exit 1
    cp -r "$source_dir/examples/sample-model" MODEL
    [ -d "$mixture" ] && cp -r "$mixture" MIXTURE && make_ids >ids.npy
    while read -r line; do
        case $line in
            *MIXTURE*) [ -d MIXTURE ] || continue ;;
            *lint*) [ -d OUT ] || [ -d RUN ] || continue ;;
        esac
        case $line in *' -o OUT'*) rm -rf OUT ;; esac
        count=$((count + 1))
        eval "$fp8calib $line --device cpu --quiet" >out 2>err </dev/null
        code=$?
        [ $code = 0 ] && continue
        # the sample model's keys are 64 wide: no blocks of 128, and lint says so
        [ $code = 4 ] && ! grep '^error\|^warning' out | grep -qv block-size && continue
        echo "$1: exit code $code: $line: $(cat err out)" >&2
        failures=$((failures + 1))
    done < <(sed -n 's|^    fp8calib \(.*\)|\1|p' "$1")
}

for file in "$source_dir"/docs/TASK_*.md; do page "$file"; done
[ $count -ge 25 ] || { echo "only $count commands on the pages" >&2; exit 1; }
[ $failures = 0 ]
