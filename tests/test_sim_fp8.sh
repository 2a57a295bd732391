#!/bin/bash
# tests/test_sim_fp8.sh - the runtime against an independent simulation of the same scheme
# (tests/sim_fp8.py), on the sample model as it is and as `fp8calib run` and `convert` wrote it.
# Logits in float32, 32 sequences of 16 tokens: BF16 weights the same to 1e-5 for every token, FP8
# for at least a fifth (until a code rounds the other way; a sixteenth when Q alone is taken
# otherwise). With a text to judge on, perplexity: BF16 within 0.3 %, the cost of FP8 within 0.3
# points. Skipped without numpy, ml_dtypes and safetensors.
# ctest: slow
set -e
windows=20
window=256
model=$FP8_SOURCE_DIR/examples/sample-model
text=$FP8_TEST_DATA/text/wikitext2_test.txt
skip() { echo "test_sim_fp8: skipped: $*" >&2; exit 77; }
[ -x "$FP8CALIB" ] || skip "no fp8calib"
"${PYTHON:=python3}" -c 'import numpy, ml_dtypes, safetensors' 2>/dev/null ||
    skip "$PYTHON lacks numpy, ml_dtypes or safetensors"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tokenize() {
    "$PYTHON" -c 'import json, sys; print(json.dumps({"text": sys.stdin.read()}))' <"$1" |
        "$FP8CALIB" tokenize "$model"
}
simulate() { "$PYTHON" "$FP8_SOURCE_DIR/tests/sim_fp8.py" "$@" --with numpy; }

"$FP8CALIB" run "$model" -o "$work/fp8" --no-eval --device cpu --quiet >/dev/null
"$FP8CALIB" convert "$model" -o "$work/dynamic" --device cpu --quiet >/dev/null
tokenize "$FP8_SOURCE_DIR/examples/evaluation.txt" | "$PYTHON" -c '
import json, sys, numpy
numpy.save(sys.argv[1], numpy.array(json.load(sys.stdin)["ids"][:512], "i4").reshape(32, 16))' \
    "$work/ids.npy"
for folder in "$model" "$work/fp8" "$work/dynamic"; do
    "$FP8CALIB" logits "$folder" --tokens "$work/ids.npy" --compute fp32 --device cpu --quiet \
        --force -o "$work/logits.safetensors" >/dev/null
    simulate "$work/ids.npy" "$folder" --compute fp32 --against "$work/logits.safetensors"
done | "$PYTHON" -c '
import json, sys
bf16, *fp8 = (json.loads(line) for line in sys.stdin)
for r in (bf16, *fp8):
    print("{path}: {equal:.3f} of the tokens equal, relative L2 {relative_l2:.2e}".format(**r))
sys.exit(len(fp8) != 2 or not bf16["equal"] == 1 or not all(r["equal"] >= 0.2 for r in fp8))'
[ -r "$text" ] || exit 0

head -n 300 "$text" >"$work/text.txt"
tokenize "$work/text.txt" >"$work/ids.json"
"$FP8CALIB" eval "$model" "$work/fp8" --data "$work/text.txt" --window $window \
    --max-windows $windows --device cpu --quiet --json >"$work/eval.json"
simulate "$work/ids.json" "$model" "$work/fp8" --window $window --max-windows $windows \
    >"$work/sim.json"
"$PYTHON" -c '
import json, sys
got = json.load(open(sys.argv[1]))["models"]
want = [json.loads(line) for line in open(sys.argv[2])]
(a, b), (c, d) = ([m["perplexity"] for m in ms] for ms in (got, want))
tokens = {m["tokens"] for m in got + want}
print(f"BF16: fp8calib {a:.4f}, simulated {c:.4f} ({100 * (a / c - 1):+.3f} %)")
print(f"FP8: fp8calib {b:.4f} ({100 * (b / a - 1):+.3f} %), "
      f"simulated {d:.4f} ({100 * (d / c - 1):+.3f} %), {tokens} tokens")
sys.exit(tokens != {int(sys.argv[3])} or not abs(a / c - 1) < 0.003 or
         not abs(b / a - d / c) < 0.003)' "$work/eval.json" "$work/sim.json" $((windows * window))
