#!/bin/bash
# tests/test_accuracy_page.sh - every command of docs/ACCURACY.md, on the sample model. ctest: slow
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" && cp -r "$source_dir/examples/sample-model" MODEL || exit 1
failures=0
count=0
mkdir -p OUT.fp8-plain && touch OUT.fp8-plain/left-by-a-killed-run
while read -r line; do
    case $line in *' eval '*) ;; *) rm -rf OUT ;; esac
    count=$((count + 1))
    $line --device cpu --quiet >out 2>err </dev/null
    code=$?
    [ $code = 0 ] || { echo "exit code $code: $line: $(cat err)" >&2; failures=$((failures + 1)); }
    [ -e OUT.fp8-plain ] && { echo "left behind: OUT.fp8-plain: $line" >&2; failures=$((failures + 1)); }
    case $line in *' run MODEL -o OUT '*)
        "$fp8calib" lint OUT --quiet >out 2>&1 || { echo "lint after $line: $(cat out)" >&2
            failures=$((failures + 1)); }
    esac
done < <(sed -n 's|^    fp8calib \(.*\)|'"$fp8calib"' \1|p' "$source_dir/docs/ACCURACY.md")
[ $count -ge 14 ] || { echo "only $count commands on the page" >&2; exit 1; }
[ $failures = 0 ]
