#!/bin/bash
# tests/test_cmd_scales.sh - fp8calib scales on the sample model and the CPU: against the record read
# here by its format, against the run that made it, and what it writes where.
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" && cp -r "$source_dir/examples/sample-model" model && chmod -R u+w model || exit 1
failures=0

fail() {
    echo "[$step] $*" >&2
    failures=$((failures + 1))
}
# quiet ARGUMENTS...: exit code 0, nothing on stderr; stdout in ./out
quiet() {
    "$fp8calib" "$@" --device cpu --quiet >out 2>err </dev/null || fail "exit code $?: $*: $(cat err)"
    [ -s err ] && fail "stderr: $(head -c 200 err)"
}
says() { grep -qE -e "$2" "$1" || fail "no '$2' in $1: $(head -c 400 "$1")"; }

# oracle RECORD ALGORITHM HISTORY MARGIN: the document in ./out against the record's own rows
cat >oracle.py <<'END'
import json, math, struct, sys
def f32(x): return struct.unpack("<f", struct.pack("<f", x))[0]
raw = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8:8 + size])
def rows(name, code):
    begin, end = header[name]["data_offsets"]
    data = raw[8 + size + begin:8 + size + end]
    return struct.unpack("<%d%s" % (len(data) // struct.calcsize("<" + code), code), data)
algorithm, length, margin = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def amax(history):
    kept = [a for a in history[-length:] if math.isfinite(a) and a > 0]
    if algorithm == "max": return max(kept, default=0.0)
    if algorithm == "most_recent": return kept[-1] if kept else 0.0
    mean = kept[0] if kept else 0.0
    for a in kept[1:]: mean = f32(mean + f32(f32(0.01) * f32(a - mean)))
    return mean
d = json.load(open("out", encoding="utf-8"))
points = header["__metadata__"]["points"].split("\n")
assert [p["name"] for p in d["points"]] == points
assert d["recipe"] == {"amax_algo": algorithm, "amax_history": length, "margin": margin,
                       "calibrator": "amax"}
assert d["record"]["tokens"] == sum(rows("tokens", "q"))
assert d["record"]["made_with"] == json.loads(bytes(rows("recipe", "B")))
for p in d["points"]:
    a = amax(rows(p["name"] + ".amax_history", "f"))
    top = 448 / 2 ** margin
    assert f32(p["amax"]) == a > 0, (p, a)
    later = amax(rows(p["name"] + ".amax_history_without_first", "f"))
    assert f32(p["amax_without_first"]) == later, (p, later)
    assert f32(p["scale"]) == f32(top / a) and f32(p["descale"]) == f32(a / top), p
    assert p["nonfinite"] == sum(rows(p["name"] + ".nonfinite", "I")), p
END
oracle() {
    [ -z "$python" ] && return
    "$python" oracle.py "$@" 2>python.err || fail "not so: $*: $(tail -n 3 python.err)"
}

step=run
quiet run model -o one --samples 24 --batch 2 --seq 48 --no-eval
record=one/calibration.safetensors
cp $record before

step=print
for how in 'max 1024 0' 'max 3 0' 'most_recent 1024 0' 'most_recent 1 2' 'max 12 32' \
    'moving_average 1024 0' 'moving_average 5 1' 'moving_average 1 0'; do
    set -- $how
    quiet scales $record --amax-algo $1 --amax-history $2 --margin $3 --json
    oracle $record $1 $2 $3
done
quiet scales one
says out '^one/calibration.safetensors: 12 of 12 steps, [0-9]+ tokens; max of the newest 1024, margin 0$'
says out '^lm_head.input +[0-9.]+ +[0-9.]+ +[0-9.e-]+ +[0-9.e-]+$'
[ "$(grep -c '\.input \|self_attn' out)" = 41 ] || fail "rows: $(wc -l <out)"

step=file
quiet scales $record --margin 1 -o scales.json
says out '^scales.json: scales of 41 points$'
cp scales.json out
oracle $record max 1024 1
quiet scales $record --margin 2 -o scales.json --force --json
cmp -s out scales.json || fail 'file and standard output differ'
oracle $record max 1024 2

step=checkpoint
quiet scales one --model model -o again
says out '^again: 28 weights to FP8'
diff -r one again >/dev/null || fail 'the recipe of the run gives other bytes'
quiet scales one --model model -o other --margin 2 --amax-history 4 --json
oracle $record max 4 2
quiet convert model -o converted --record $record --margin 2 --amax-history 4
diff -r converted other >/dev/null || fail 'scales and convert differ'
cmp -s one/model.safetensors other/model.safetensors && fail 'a margin changes nothing'
quiet scales other --json # the record goes along whole
oracle $record max 1024 0
quiet scales one --model model -o one --margin 1 --force --kv none
cmp -s $record before || fail 'replacing its own folder changes the record'
quiet inspect one --json
says out '"kv":	"none"'

step=average
quiet run model -o averaged --samples 24 --batch 2 --seq 48 --no-eval --amax-algo moving_average --json
says out '"amax_algo":	"moving_average"'
cmp -s averaged/calibration.safetensors before || fail 'the algorithm is in the history'
cmp -s averaged/model.safetensors again/model.safetensors && fail 'the algorithm changes nothing'
quiet scales again --model model -o averaged_too --amax-algo moving_average
diff -r averaged averaged_too >/dev/null || fail 'run and scales average otherwise'

step=percentile
data='--samples 24 --batch 2 --seq 48 --no-eval'
quiet run model -o counted $data --histograms
cmp -s counted/model.safetensors again/model.safetensors || fail 'histograms change the scales'
cmp -s counted/calibration.safetensors before && fail 'no histograms in the record'
quiet run model -o cut $data --calibrator percentile --percentile 99 --margin 16 --json
says out '"calibrator":	"percentile"'
cmp -s cut/calibration.safetensors counted/calibration.safetensors || fail 'the percentile is in the record'
quiet scales counted --model model -o cut_too --calibrator percentile --percentile 99 --margin 16
says out 'margin 16, percentile 99$'
says out '^model.layers.* clipped$'
diff -r cut cut_too >/dev/null || fail 'run and scales clip otherwise'
quiet scales counted --margin 16 -o uncut.json
grep -q '"clipped":	true' uncut.json && fail 'clips without being asked'
quiet scales counted --calibrator percentile --json
says out '"percentile":	99.99'

step=unfinished
sed 's/"steps_total":"12"/"steps_total":"99"/' $record >unfinished
quiet scales unfinished --json
oracle unfinished max 1024 0
says out '"steps_total":	99'

[ "$failures" = 0 ]
