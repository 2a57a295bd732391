#!/bin/bash
# tests/test_cli.sh - every command end to end on the sample model and the CPU: what it prints where,
# what it writes, that two runs write the same bytes, and that an interrupted one goes on.
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" && cp -r "$source_dir/examples/sample-model" model && chmod -R u+w model || exit 1
text=$source_dir/examples/evaluation.txt
python=$(command -v "${PYTHON:-python3}")
failures=0

fail() {
    echo "[$step] $*" >&2
    failures=$((failures + 1))
}
# ok ARGUMENTS...: exit code 0; stdout in ./out, stderr in ./err
ok() {
    "$fp8calib" "$@" --device cpu >out 2>err </dev/null || fail "exit code $?: $*: $(cat err)"
}
quiet() {
    ok "$@" --quiet
    [ -s err ] && fail "--quiet, but stderr: $(head -c 200 err)"
}
says() { grep -qE -e "$2" "$1" || fail "no '$2' in $1: $(head -c 400 "$1")"; }
# json EXPRESSION: over the document d in ./out (needs Python; without it the document is not judged)
json() {
    [ -z "$python" ] && return
    "$python" -c 'import json, math, sys
d = json.load(open("out", encoding="utf-8"))
sys.exit(0 if eval(sys.argv[1]) else 1)' "$1" 2>python.err || fail "not so: $1: $(head -c 300 out python.err)"
}

step=help
for command in run convert lint scales inspect eval generate logits tokenize explain bench; do
    "$fp8calib" help $command >out 2>err || fail "help $command"
    [ -s err ] && fail "help $command: stderr"
    "$fp8calib" $command --help | cmp -s - out || fail "$command --help differs"
    says out '^Usage$'
    says out '^Exit codes$'
    "$fp8calib" help | grep -q "^  $command " || fail "help does not list $command"
done
"$fp8calib" --version | grep -qE '^fp8calib [0-9]+\.[0-9]+\.[0-9]+' || fail 'version'

step=run
small='--samples 12 --batch 2 --seq 64 --eval-windows 2'
ok run model -o one $small
says out '^FP8 checkpoint +one$'
says out '^perplexity +BF16 [0-9.]+, FP8 [0-9.]+'
says out '^BF16 '
says out '^FP8 '
says out '^size '
says out '^worst'
says err 'built-in text'
for f in model.safetensors config.json tokenizer.json generation_config.json calibration.safetensors
do
    [ -s one/$f ] || fail "no $f in the output"
done
[ -e one.calibration.safetensors ] && fail 'the working record is left behind'
quiet run model -o two $small --json
json 'd["output"] == "two" and d["calibration"]["samples"] == 12 and d["calibration"]["steps"] == 6'
json 'abs(d["evaluation"]["fp8"]["perplexity"] / d["evaluation"]["bf16"]["perplexity"] - 1) < 0.1'
json 'd["lint"] == []'
json 'len(d["report"]) > 0 and d["output_bytes"] < d["source_bytes"]'
diff -r one two >/dev/null || fail 'two runs differ'
for threads in 1 2 16
do
    quiet run model -o two $small --threads $threads --no-eval --force
    diff -r one two >/dev/null || fail "$threads threads write other bytes"
done
quiet run model/model.safetensors --samples 2 --no-eval
[ -s model-FP8/model.safetensors ] || fail 'default output'
(cd model && "$fp8calib" run model.safetensors --samples 2 --no-eval --force --quiet --device cpu >out)
says model/out 'model-FP8$'
rm model/out

step='data'
gzip -c "$text" >text.gz
quiet run model -o from_text $small --no-eval --data "$text"
quiet run model -o from_gzip $small --no-eval --data text.gz
cmp -s from_text/model.safetensors from_gzip/model.safetensors || fail 'gzip reads otherwise'
printf '{"body": "One sample."}\n{"body": "Another, and a longer one."}\n' >lines.jsonl
quiet run model -o from_lines $small --data lines.jsonl --field body --eval-data "$text" --json
json 'd["calibration"]["samples"] == 2 and d["evaluation"]["data"].endswith("evaluation.txt")'
quiet run model -o plain $small --kv none --no-eval --json
json 'd["recipe"]["kv"] == "none" and d["recipe"]["fp8_attention"] == "none"'

step=interrupt
for i in $(seq 150); do cat "$text"; done >long.txt
long='--data long.txt --batch 1 --seq 32 --samples 3000 --no-eval'
"$fp8calib" run model -o stopped $long --device cpu >out 2>err </dev/null &
pid=$!
for i in $(seq 100); do grep -q calibrating err && break; sleep 0.05; done
sleep 0.3
kill -INT $pid
wait $pid
code=$?
[ $code = 130 ] || fail "exit code $code after SIGINT: $(cat err)"
says err '^fp8calib: .*--resume'
[ -e stopped ] && fail 'a half output'
[ -s stopped.calibration.safetensors ] || fail 'no record'
[ -z "$(find . -maxdepth 1 -name 'stopped*' -not -name stopped.calibration.safetensors)" ] ||
    fail "left behind: $(echo stopped*)"
"$fp8calib" run model -o stopped $long --device cpu --quiet >out 2>err
[ $? = 5 ] || fail 'a record is overwritten without a word'
quiet run model -o stopped $long --resume
quiet run model -o whole $long
diff -r stopped whole >/dev/null || fail 'a resumed run differs from a whole one'
[ -e stopped.calibration.safetensors ] && fail 'the working record is left behind'

step=eval
quiet eval model one --data "$text" --window 128 --json
json 'len(d["models"]) == 2 and d["models"][0]["kl"] == 0 and d["models"][0]["top1"] == 1'
json '0 < d["models"][1]["kl"] < 0.1 and d["models"][1]["top1"] > 0.8'
json 'all(math.isfinite(m["perplexity"]) and m["tokens"] > 500 for m in d["models"])'
ok eval model one --data "$text" --max-windows 1
says out 'perplexity'
says out ' one$'

step=shards
quiet run model -o sharded $small --no-eval --max-shard-size 500KB
index=sharded/model.safetensors.index.json
[ -s $index ] || fail 'no index'
quiet eval one $index --data "$text" --max-windows 1 --json
json 'd["models"][0]["perplexity"] == d["models"][1]["perplexity"]'

step=generate
quiet generate one --prompt 'The kernel' --max-tokens 12
cp out streamed
quiet generate one --prompt 'The kernel' --max-tokens 12 --json
json 'd["text"] + "\n" == open("streamed", encoding="utf-8").read() and len(d["ids"]) <= 12'
json 'd["prompt_ids"][0] == 0 and d["prompt"] == "The kernel"'

quiet generate one --prompt 'The kernel' --prompt 'A river' --prompt 'The kernel' --max-tokens 12 --json
json '[g["text"] + "\n" for g in d["generations"]][::2] == [open("streamed", encoding="utf-8").read()] * 2'
quiet generate one --prompt 'The kernel' --prompt 'A river' --prompt 'The kernel' --max-tokens 12
cp out together
says out '^\[2\] A river'
printf 'The kernel\n\nA river\nThe kernel' >prompts.txt
quiet generate one --prompts prompts.txt --batch 1 --max-tokens 12
cmp -s out together || fail 'one at a time gives other text'
quiet generate one --prompt 'The kernel' --prompt 'A river' --temperature 0.8 --top-p 0.9 --seed 3 --json
cp out drawn
quiet generate one --prompt 'The kernel' --prompt 'A river' --temperature 0.8 --top-p 0.9 --seed 3 --json
cmp -s out drawn || fail 'a seed does not repeat'
json '[g["prompt"] for g in d["generations"]] == ["The kernel", "A river"]'

step=convert
quiet convert model -o dynamic
says out '^dynamic: 28 weights'
quiet eval model dynamic --data "$text" --max-windows 1 --json
json 'd["models"][1]["kl"] < 0.1'
quiet convert model -o tensor --scheme tensor --json
json 'd["scheme"] == "tensor-dynamic" and d["quantized"] == 28'
quiet inspect tensor --json
json 'd["quantization"]["scheme"] == "tensor-dynamic" and d["quantization"]["kv"] == "none"'
json 'd["descales"]["weight_scale"]["tensors"] == 28 and "input_scale" not in d["descales"]'
quiet eval model tensor --data "$text" --max-windows 1 --json
json 'd["models"][1]["kl"] < 0.1'
quiet convert model -o derived --record one/calibration.safetensors
diff -r one derived >/dev/null || fail 'a record gives other bytes than its run'
quiet convert model -o roomy --record one/calibration.safetensors --margin 3 --kv none --json
json 'd["scheme"] == "tensor"'
quiet inspect roomy --json
json 'd["quantization"]["kv"] == "none" and "k_scale" not in d["descales"]'
mkdir lone && cp model/model.safetensors lone/weights.safetensors
quiet convert lone/weights.safetensors -o lone8 --exclude '*embed*' --exclude '*norm*' --json
json 'd["quantized"] == 28'
quiet inspect lone8 --json
json 'sum(t["dtype"] == "F8_E4M3" for t in d["tensors"]) == 28'
quiet convert lone/weights.safetensors -o lone_tensor --scheme tensor
[ -s lone_tensor/quantization_config.json ] || fail 'no quantization_config.json'
quiet inspect lone_tensor --json
json 'd["descales"]["weight_scale"]["tensors"] == 28'
json 'all(t["shape"] == [1] for t in d["tensors"] if t["name"].endswith("_scale"))'

step=dialects
for dialect in fp8 deepseek modelopt; do
    quiet convert model -o "as_$dialect" --dialect $dialect
    quiet inspect "as_$dialect" --json
    json "d['quantization']['dialect'] == '$dialect'"
    quiet convert one -o "one_$dialect" --dialect $dialect --json
    json "d['kept'] == 28 and d['requantized'] == 0 and d['dialect'] == '$dialect'"
    quiet eval model "one_$dialect" --data "$text" --max-windows 1 --json
    json 'd["models"][1]["kl"] < 0.1'
done
[ -s one_modelopt/hf_quant_config.json ] || fail 'no hf_quant_config.json'
quiet convert one_fp8 -o one_again --dialect compressed-tensors
cmp -s one/model.safetensors one_again/model.safetensors || fail 'not the same there and back'
cmp -s one/config.json one_again/config.json || fail 'not the same configuration there and back'
quiet convert model -o derived_modelopt --dialect modelopt --record one/calibration.safetensors
for f in model.safetensors config.json hf_quant_config.json; do
    cmp -s derived_modelopt/$f one_modelopt/$f || fail "two ways to modelopt differ in $f"
done
ok convert as_deepseek -o by_tensor --dialect fp8 --scheme tensor-dynamic
says err '^[0-9]+ weights have new codes'
quiet convert one -o dense --to bf16
cmp -s dense/config.json model/config.json || fail 'a quantization_config is left'
quiet eval model dense --data "$text" --max-windows 1 --json
json 'd["models"][1]["kl"] < 0.1'
quiet convert model -o kv_only --scheme none --record one/calibration.safetensors --fp8-attention none --json
json 'd["quantized"] == 0'
quiet eval model kv_only --data "$text" --max-windows 1 --json
json '0 < d["models"][1]["kl"] < 0.1'

step=lint
quiet lint one --json
json 'd["errors"] == 0 and d["lint"] == [] and d["rules"] > 20'
for dialect in fp8 modelopt; do
    quiet lint "as_$dialect"
    says out ' 0 errors, 0 warnings$'
    quiet lint "one_$dialect" --engine tensorrt-llm
done
"$fp8calib" lint as_deepseek --json >out 2>err && fail 'KV heads of 64 pass in blocks of 128'
json 'd["errors"] == 8 and all(f["rule"] == "block-size" and "64" in f["where"] for f in d["lint"])'
quiet lint as_deepseek --engine hf
"$fp8calib" lint one --tp 7 >out 2>err
[ $? = 4 ] || fail "--tp 7: exit code, $(cat err)"
says out 'tp-heads'
cp -r one frozen && sed -i 's/"compressed"/"frozen"/' frozen/config.json
"$fp8calib" lint frozen --engine hf >out 2>err && fail 'frozen passes'
says out 'status-frozen'

step=explain
quiet explain attention --shape 2,8,2,64,100,200 --mask causal-bottom-right --window 15,-1 --json
json 'd["backend"] == "cpu" and d["device"]["compute_capability"] == 0 and not d["device"]["described"]'
json 'd["configuration"]["mask"] == "causal, bottom-right" and d["configuration"]["window"] == "left 15, right no bound"'
json '[b["serves"] for b in d["backends"] if b["name"] == "cpu"] == [True] and len(d["backends"]) == 4'
quiet explain attention --shape 1,8,8,128,4096
says out '^backend: cpu$'
says out '^shape: 1 sequences, up to 4096 queries and 4096 keys, 8 heads over 8 KV heads, d 128$'
says out '^in: Q F8_E4M3, K and V F8_E4M3; descales per tensor$'
says out '^flash +.'
FP8_ATTENTION_BACKEND=cpu "$fp8calib" explain attention --shape 1,8,8,128,4096 --device sm_75,cudnn=9.14 --json >out || fail 'sm_75'
json 'd["device"]["described"] and d["device"]["cudnn_version"] == 91400 and d["backends"][0]["name"] == "cpu"'
json 'not d["backends"][0]["serves"] and "expected 90" in [b["reason"] for b in d["backends"] if b["name"] == "flash"][0]'
for bad in '--shape 1,8' '--shape 1,8,3,64,9' '--shape 1,8,8,64,9 --window 1' '--shape 1,8,8,64,9 --softcap x' \
    '--shape 1,8,8,64,-9' '--shape 1,8,8,64,9 --layout xyz' '--shape 1,8,8,64,9 --device sm_x' ''; do
    "$fp8calib" explain attention $bad >out 2>err && fail "accepts '$bad'"
    [ $(wc -l <err) = 1 ] || fail "'$bad': not one line: $(cat err)"
done

step=bench
for bad in nothing 'attention --shape 1,8' 'attention --shape 1,8,3,64,9,none' 'attention --shape 1,8,8,64,9,full' \
    'attention --shape 1,8,8,64,9,none,bias,bias' 'attention --shape 1,8,8,64/,9,none' 'attention --rounds 1' \
    'attention --csv nowhere/x.csv' ''; do
    "$fp8calib" bench $bad --device cpu >out 2>err && fail "accepts '$bad'"
    [ $(wc -l <err) = 1 ] || fail "'$bad': not one line: $(cat err)"
    [ -s out ] && fail "'$bad': prints $(cat out)"
done
"$fp8calib" bench attention --shape 1,8,8,64/128,9/7,causal_br,bias --device cpu 2>err && fail 'benches on the CPU'
grep -q 'CPU\|without CUDA' err || fail "on the CPU: $(cat err)"
"$fp8calib" bench atention --device cpu 2>err
grep -q "did you mean 'attention'" err || fail "spelling: $(cat err)"

step=inspect
quiet inspect one
says out 'model.layers.3.mlp.up_proj.weight +F8_E4M3'
says out '^total '
quiet inspect one --json
json 'd["quantization"]["scheme"] == "tensor" and d["quantization"]["kv"] == "fp8"'
json 'd["quantization"]["attention"] == "dpa"'
json 'd["descales"]["weight_scale"]["tensors"] == 28 and d["descales"]["k_scale"]["min"] > 0'
quiet inspect model --json
json 'd["quantization"]["scheme"] == "none" and len(d["tensors"]) == 38'

cp -r model other && sed -i 's/"llama"/"mamba"/' other/config.json
quiet inspect other
says out '^model .*mamba'
says out '^total +38 tensors'

step=logits
printf '\x00\x00\xf3\x01\xe4\x03\x13\x02\x71\x01' >ids.bin
quiet logits model --tokens ids.bin -o logits.safetensors --compute fp32
quiet inspect logits.safetensors --json
json 'd["tensors"][0]["name"] == "logits" and d["tensors"][0]["shape"] == [1, 5, 2048]'
quiet logits model --tokens ids.bin -o logits.safetensors --force --json
json 'd["shape"] == [1, 5, 2048]'

step=tokenize
cat >texts.jsonl <<'END'
{"text": "The kernel"}
{"text": "a\u0000b \"quoted\" \\ \u001f\n\té 漢字 🙂"}
{"text": ""}
END
quiet tokenize model --data texts.jsonl
cp out ids.jsonl
[ "$(wc -l <ids.jsonl)" = 3 ] || fail 'three texts, other lines'
says ids.jsonl '^\{"ids":\[0,[0-9,]+\]\}$'
quiet tokenize model/tokenizer.json --decode --data ids.jsonl
if [ -n "$python" ]; then
    "$python" -c 'import json
read = lambda p: [json.loads(l)["text"] for l in open(p, encoding="utf-8")]
assert read("texts.jsonl") == read("out"), read("out")' 2>python.err || fail "$(cat python.err)"
fi
"$fp8calib" tokenize model <texts.jsonl | cmp -s - ids.jsonl || fail 'standard input reads otherwise'

step=mixture
mixture=${FP8_TEST_DATA:-}/fixtures/qwen3_moe
if [ -d "$mixture" ]; then
    quiet run "$mixture" -o mixture-FP8 --tokens "$mixture/reference.safetensors"
    says out '^experts +12; [0-9]+ to [0-9]+ tokens each, 0 saw none'
    quiet run "$mixture" -o mixture-FP8 --force --tokens "$mixture/reference.safetensors" --json
    json 'd["calibration"]["experts"]["count"] == 12 and d["calibration"]["experts"]["idle"] == 0'
    quiet eval mixture-FP8 --tokens "$mixture/reference.safetensors"
fi

[ "$failures" = 0 ]
