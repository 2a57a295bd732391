#!/bin/bash
# tests/test_checkpoints_page.sh - every command of docs/CHECKPOINTS.md, on the sample model.
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" && cp -r "$source_dir/examples/sample-model" MODEL || exit 1
failures=0
count=0
# The static run comes later on the page than some of what is written beside it.
while read -r line; do
    rm -rf OUT
    count=$((count + 1))
    $line --device cpu --quiet >out 2>err </dev/null
    code=$?
    [ $code = 0 ] || { echo "exit code $code: $line: $(cat err)" >&2; failures=$((failures + 1)); }
done < <(sed -n 's|^    fp8calib \(.*\)|'"$fp8calib"' \1|p' "$source_dir/docs/CHECKPOINTS.md" |
    sed 's/--tp 2/--tp 1/')
[ $count -ge 15 ] || { echo "only $count commands on the page" >&2; exit 1; }
# Every rule of the table is on the page.
for rule in $(grep -o '{{"[a-z0-9-]*"' "$source_dir/formats/lint_rules.c" | tr -d '{"'); do
    grep -q "$rule" "$source_dir/docs/CHECKPOINTS.md" || { echo "no $rule" >&2; failures=$((failures + 1)); }
done
[ $failures = 0 ]
