#!/bin/bash
# tests/test_sim_fp8.sh - perplexity of the sample model, BF16 and FP8 as `fp8calib run` wrote it,
# by `fp8calib eval` and by the numpy simulation of the same scheme: within 0.3 %. Skipped without a
# text to judge on, or without numpy, ml_dtypes and safetensors.
# ctest: slow
set -e
windows=20
window=256
bound=0.003
model=$FP8_SOURCE_DIR/examples/sample-model
text=$FP8_TEST_DATA/text/wikitext2_test.txt
skip() { echo "test_sim_fp8: skipped: $*" >&2; exit 77; }
[ -r "$text" ] || skip "no $text"
[ -x "$FP8CALIB" ] || skip "no fp8calib"
"${PYTHON:=python3}" -c 'import numpy, ml_dtypes, safetensors' 2>/dev/null ||
    skip "$PYTHON lacks numpy, ml_dtypes or safetensors"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$FP8CALIB" run "$model" -o "$work/fp8" --no-eval --device cpu --quiet >/dev/null
head -n 300 "$text" | "$PYTHON" -c '
import json, sys
print(json.dumps({"text": sys.stdin.read()}))' | "$FP8CALIB" tokenize "$model" >"$work/ids.json"
"$PYTHON" -c '
import json, sys
import numpy as np
ids = json.load(open(sys.argv[1]))["ids"]
assert len(ids) > int(sys.argv[3]), f"only {len(ids)} ids"
np.save(sys.argv[2], np.array(ids, np.int32))' \
    "$work/ids.json" "$work/ids.npy" $((windows * window))
"$FP8CALIB" eval "$model" "$work/fp8" --tokens "$work/ids.npy" --window $window \
    --max-windows $windows --device cpu --quiet --json >"$work/eval.json"
for which in "$model" "$work/fp8"; do
    "$PYTHON" "$FP8_SOURCE_DIR/tests/sim_fp8.py" "$which" "$work/ids.npy" --window $window \
        --max-windows $windows
done >"$work/sim.json"
"$PYTHON" -c '
import json, sys
got = [m["perplexity"] for m in json.load(open(sys.argv[1]))["models"]]
want = [json.loads(line)["perplexity"] for line in open(sys.argv[2])]
failed = len(got) != 2
for name, x, y in zip(("BF16", "FP8"), got, want):
    print(f"{name}: fp8calib {x:.4f}, simulated {y:.4f} ({100 * (x / y - 1):+.3f} %)")
    failed |= not abs(x / y - 1) < float(sys.argv[3])
sys.exit(failed)' "$work/eval.json" "$work/sim.json" $bound
