#!/bin/bash
# tests/test_bad_input.sh - broken command lines, files and data, one row each: exactly one line on
# stderr that names the trouble, nothing on stdout, the documented exit code, nothing left behind.
# Everything is derived from examples/sample-model.
export LC_ALL=C
fp8calib=${FP8CALIB:-$PWD/build/test/fp8calib}
source_dir=$(cd "${FP8_SOURCE_DIR:-$(dirname "$0")/..}" && pwd)
[ -x "$fp8calib" ] || { echo "skipped: no $fp8calib" >&2; exit 77; }
work=$(mktemp -d) || exit 1
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
good=$work/good
cp -r "$source_dir/examples/sample-model" "$good" && chmod -R u+w "$good" || exit 1
good8=$work/good8
rows=0
failures=0

# ---- ways to break a file -----------------------------------------------------------------------
# begin FILE TENSOR: its byte offset in a safetensors file
begin() {
    local header at
    header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    at=$(head -c $((8 + header)) "$1" | tr -d '\0' |
        sed 's/.*"'"${2//./\\.}"'": *{[^}]*"data_offsets": *\[\([0-9]*\),.*/\1/')
    echo $((8 + header + at))
}
# poke FILE TENSOR BYTES: writes printf-escaped bytes over its beginning
poke() { printf "$3" | dd of="$1" bs=1 seek="$(begin "$1" "$2")" conv=notrunc status=none; }
# sub FILE OLD NEW: plain text, same length in a binary file
sub() { local s=$'\x01'; sed -i "s$s$2$s$3$s" "$1"; }
# cut_to FILE BYTES
cut_to() { head -c "$2" "$1" >"$1.cut" && mv "$1.cut" "$1"; }
# npy FILE HEADER DATA: a version 1.0 array file
npy() {
    { printf '\x93NUMPY\x01\x00'; printf "\\x$(printf %02x ${#2})\\x00"; printf %s "$2"
      printf "$3"; } >"$1"
}

# ---- one row ------------------------------------------------------------------------------------
listing() { find . -mindepth 1 -printf '%p %s %T@\n' | sort; }

# row NAME EXIT 'part of the message' 'shell that breaks something' ARGUMENTS...
# In a fresh folder: m is the good model, t.txt a text, ids.bin token ids.
row() {
    local name=$1 want=$2 text=$3 breakage=$4 case=$work/case got before
    shift 4
    rows=$((rows + 1))
    rm -rf "$case" && mkdir "$case" && cd "$case" || exit 1
    cp -r "$good" m
    printf 'The kernel allocates memory for the process.\n%.0s' {1..40} >t.txt
    printf '\x05\x00\x06\x00\x07\x00\x08\x00' >ids.bin
    eval "$breakage" || { echo "[$name] could not be prepared" >&2; exit 1; }
    before=$(listing)
    timeout 60 "$fp8calib" "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ "$got" = "$want" ] || complain "$name" "exit code $got, want $want"
    [ "$(wc -l <"$work/err")" = 1 ] || complain "$name" "$(wc -l <"$work/err") lines on stderr"
    grep -q '^fp8calib: ' "$work/err" || complain "$name" "no 'fp8calib: ' on stderr"
    grep -qF -e "$text" "$work/err" || complain "$name" "stderr does not say '$text'"
    [ -s "$work/out" ] && complain "$name" "something on stdout: $(head -c 80 "$work/out")"
    [ "$(listing)" = "$before" ] || complain "$name" "left behind: $(listing | diff - <(echo "$before"))"
    cd "$work" || exit 1
}
complain() {
    echo "[$1] $2" >&2
    sed 's/^/    /' "$work/err" >&2
    failures=$((failures + 1))
}

cpu='--device cpu --quiet'
run="run m -o out $cpu --samples 2 --seq 32 --no-eval"
tokenizer=m/tokenizer.json
config=m/config.json
weights=m/model.safetensors
"$fp8calib" convert "$good" -o "$good8" $cpu >/dev/null || { echo "convert failed" >&2; exit 1; }

"$fp8calib" run "$good" -o "$work/ran" $cpu --samples 2 --seq 32 --no-eval >/dev/null &&
    cp "$work/ran/calibration.safetensors" "$work/record" || { echo "run failed" >&2; exit 1; }

# ---- the command line ---------------------------------------------------------------------------
row 'no command' 2 'no command' :
row 'unknown command' 2 "unknown command 'frob'" : frob
row 'misspelt command' 2 "did you mean 'inspect'" : inpsect m
row 'help of an unknown command' 2 "did you mean 'run'" : help rnu
row 'two helps' 2 "unexpected operand 'eval'" : help run eval
row 'unknown option' 2 "unknown option '-z'" : run m -z
row 'misspelt option' 2 "did you mean '--samples'" : run m --sampels 3
row 'option of another command' 2 "unknown option '--prompt'" : eval m --prompt x
row 'no operand' 2 'expected MODEL' : run
row 'empty operand' 2 'empty name' : run ''
row 'two operands' 2 "unexpected operand 'b'" : run m b
row 'option without value' 2 '--batch: expected N' : run m --batch
row 'flag with value' 2 "--json: takes no value" : inspect m --json=1
row 'not an integer' 2 "--batch '8x': expected an integer from 1 to 65536" : run m --batch 8x
row 'space before an integer' 2 "--batch ' 8'" : run m --batch ' 8'
row 'hexadecimal' 2 "--seq '0x10'" : run m --seq 0x10
row 'empty integer' 2 "--margin ''" : run m --margin=
row 'too small' 2 "--samples '0'" : run m --samples 0
row 'negative' 2 "--max-tokens '-1'" : generate m --prompt x --max-tokens -1
row 'too large' 2 "--margin '33': expected an integer from 0 to 32" : run m --margin 33
row 'beyond 64 bits' 2 "--seq '99999999999999999999'" : run m --seq 99999999999999999999
row 'threads' 2 "--threads '1025'" : eval m --threads 1025
row 'history' 2 "--amax-history '0'" : run m --amax-history 0
row 'choice' 2 "--kv 'bf16': expected fp8|none" : run m --kv bf16
row 'part of a choice' 2 "--amax-algo 'ma'" : run m --amax-algo ma
row 'attention' 2 "--fp8-attention 'fused'" : run m --fp8-attention fused
row 'format' 2 "--fp8-format 'e5m2'" : run m --fp8-format e5m2
row 'scheme' 2 "--scheme 'square'" : convert m -o out --scheme square
row 'dialect' 2 "--dialect 'awq'" : convert m -o out --dialect awq
row 'scheme of another dialect' 2 'dialect modelopt has no scheme block' : \
    convert m -o out --dialect modelopt --scheme block $cpu
row 'BF16 to BF16' 2 '--to bf16' : convert m -o out --to bf16 $cpu
row 'scales of two kinds' 2 'power-of-two' : convert m -o out --scales ue8m0 $cpu
row 'compute' 2 "--compute 'fp16'" : eval m --compute fp16
row 'size' 2 "--max-shard-size '5XB'" : run m --max-shard-size 5XB
row 'size of nothing' 2 "--max-shard-size '0'" : convert m -o out --max-shard-size 0
row 'size beyond 64 bits' 2 "'99999999999TB'" : run m --max-shard-size 99999999999TB
row 'empty file name' 2 '--data: expected FILE' : run m --data ''
row 'attention without scales' 2 '--fp8-attention mha' : run m --kv none --fp8-attention mha
row 'tensor, KV without record' 2 '--kv fp8 needs --record' : convert m -o out --scheme tensor --kv fp8
row 'KV scales without record' 2 '--kv fp8 needs --record' : convert m -o out --kv fp8
row 'margin without record' 2 '--margin' : convert m -o out --margin 1
row 'algorithm without record' 2 '--amax-algo' : convert m -o out --amax-algo most_recent
row 'no such record' 3 'r.safetensors' : convert m -o out $cpu --record r.safetensors
row 'record of weights' 3 'model.safetensors' : convert m -o out $cpu --record $weights
row 'data and tokens' 2 'exclude each other' : run m --data t.txt --tokens ids.bin
row 'data and tokens of eval' 2 'exclude each other' : eval m --data t.txt --tokens ids.bin
row 'convert without output' 2 '--output is required' : convert m
row 'generate without prompt' 2 '--prompt or --prompts is required' : generate m
row 'logits without tokens' 2 '--tokens is required' : logits m -o l.safetensors
row 'logits without output' 2 '--output is required' : logits m --tokens ids.bin
row 'sequence beyond the model' 2 '--seq 2048: the model has 1024' : $run --seq 2048
row 'window beyond the model' 2 '--window 1025' : eval m $cpu --data t.txt --window 1025
row 'device' 2 "--device 'tpu'" : $run --device tpu
row 'device index' 2 "--device 'cuda:x'" : $run --device cuda:x
row 'no such device' 1 'cuda:999' : $run --device cuda:999

# ---- the model's files --------------------------------------------------------------------------
row 'no model' 3 'nothing' : inspect nothing
row 'model is a text' 3 't.txt' : inspect t.txt
row 'empty folder' 3 'm: expected' 'rm -r m/*' inspect m
row 'two files and no index' 3 'm' 'cp $weights m/b.safetensors; mv $weights m/a.safetensors' inspect m
row 'no config' 3 'config.json' 'rm $config' $run
row 'config cut' 3 'config.json' 'cut_to $config 300' $run
row 'config is no object' 3 'config.json' 'echo "[]" >$config' $run
row 'config with a key twice' 3 'hidden_size' 'sub $config "{" "{\"hidden_size\": 128,"' $run
row 'other architecture' 3 'mamba' "sub $config '\"llama\"' '\"mamba\"'" $run
row 'no hidden_size' 3 'hidden_size' "sub $config hidden_size hidden_sise" $run
row 'negative layers' 3 'num_hidden_layers' "sub $config '_layers\": 4' '_layers\": -4'" $run
row 'heads do not divide' 3 'key-value heads' \
    "sub $config '\"num_key_value_heads\": 1' '\"num_key_value_heads\": 3'" $run
row 'activation' 3 'swishy' "sub $config silu swishy" $run
row 'RoPE type' 3 'spiral' "sub $config '\"default\"' '\"spiral\"'" $run
row 'quantization method' 3 'gptq' \
    "sub $config '{' '{\"quantization_config\": {\"quant_method\": \"gptq\"},'" eval m $cpu
row 'weights cut' 3 'model.safetensors' 'cut_to $weights 2000000' inspect m
row 'weights empty' 3 'model.safetensors' ': >$weights' inspect m
row 'header cut' 3 'model.safetensors' 'cut_to $weights 100' inspect m
row 'header of 2^63 bytes' 3 'model.safetensors' \
    'printf "\xff\xff\xff\xff\xff\xff\xff\x7f" | dd of=$weights conv=notrunc status=none' inspect m
row 'header no JSON' 3 'model.safetensors' 'sub $weights "{\"__meta" "[\"__meta"' inspect m
row 'unknown dtype' 3 'BF17' 'sub $weights "\"BF16\"" "\"BF17\""' inspect m
row 'tensor missing' 3 'model.norm.weight' 'sub $weights model.norm.weight model.nrom.weight' $run
row 'tensor missing for export' 3 'model.layers.2.mlp.up_proj.weight' \
    'sub $weights layers.2.mlp.up_proj layers.2.mlp.vp_proj' convert m -o out $cpu
row 'wrong shape' 3 'proj.weight' "sub $config '_size\": 384' '_size\": 512'" $run
row 'shape and bytes differ' 3 'model.embed_tokens.weight' \
    'sub $weights "\[2048,128\]" "[2048,129]"' inspect m
nan='\xc0\x7f'
row 'NaN weight, run' 4 'model.layers.1.mlp' \
    'poke $weights model.layers.1.mlp.up_proj.weight "$nan"' $run
row 'NaN weight, convert' 4 'model.layers.1.mlp.up_proj.weight' \
    'poke $weights model.layers.1.mlp.up_proj.weight "$nan"' convert m -o out $cpu
row 'Inf weight, convert' 4 'model.layers.0.self_attn.k_proj.weight' \
    'poke $weights model.layers.0.self_attn.k_proj.weight "\x80\xff"' convert m -o out $cpu
row 'NaN embedding of BOS' 4 'layers.0' 'poke $weights model.embed_tokens.weight "$nan"' $run

index=m/model.safetensors.index.json
shards='mv $weights m/model-1.safetensors'
map() { echo "{\"metadata\": {}, \"weight_map\": {$1}}" >$index; }
row 'index with traversal' 3 'passwd' \
    "$shards; map '\"model.norm.weight\": \"../../etc/passwd\"'" inspect m
row 'index with an absolute path' 3 '/etc' \
    "$shards; map '\"model.norm.weight\": \"/etc/x.safetensors\"'" inspect m
row 'shard missing' 3 'model-2.safetensors' \
    "$shards; map '\"model.norm.weight\": \"model-2.safetensors\"'" inspect m
row 'tensor not in its shard' 3 'model.morn.weight' \
    "$shards; map '\"model.morn.weight\": \"model-1.safetensors\"'" inspect m
row 'index without weight_map' 3 'weight_map' "$shards; echo '{}' >$index" inspect m
row 'index no JSON' 3 'index.json' "$shards; echo '{\"weight_map\": ' >$index" inspect m

fp8='rm -r m; cp -r $good8 m'
q=model.layers.3.self_attn.q_proj
row 'scale missing' 3 "$q" "$fp8; sub $weights $q.weight_scale $q.weight_skale" eval m $cpu --data t.txt
row 'scale NaN' 4 "$q" "$fp8; poke $weights $q.weight_scale '\x00\x00\xc0\x7f'" eval m $cpu --data t.txt
row 'scale negative' 4 "$q" "$fp8; poke $weights $q.weight_scale '\x00\x00\x80\xbf'" \
    generate m $cpu --prompt x
row 'scale zero' 4 "$q" "$fp8; poke $weights $q.weight_scale '\x00\x00\x00\x00'" \
    logits m $cpu --tokens ids.bin -o l.safetensors
row 'FP8 already' 3 'm' "$fp8" $run
row 'FP8 already, convert' 2 'the source is FP8 already' "$fp8" convert m -o out --kv fp8 $cpu

# ---- the tokenizer ------------------------------------------------------------------------------
row 'no tokenizer' 3 'tokenizer.json' 'rm $tokenizer' $run
row 'tokenizer cut' 3 'tokenizer.json' 'cut_to $tokenizer 50000' $run
row 'tokenizer no JSON' 3 'tokenizer.json' 'echo hello >$tokenizer' generate m $cpu --prompt x
row 'tokenizer model' 3 'WordPiece' 'sub $tokenizer "\"type\": \"BPE\"" "\"type\": \"WordPiece\""' $run
row 'regex' 3 'p{Lu}' 'sub $tokenizer "p{L}+|" "p{Lu}+|"' $run
row 'normalizer' 3 'Nmt' 'sub $tokenizer "\"normalizer\": null" "\"normalizer\": {\"type\": \"Nmt\"}"' \
    tokenize $tokenizer
flags='"single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true'
more='{"id": 2048, "content": "<more>", '$flags'},'
row 'vocabulary beyond the model' 4 'vocab_size' \
    "sed -i '/\"added_tokens\": \[/a $more' $tokenizer" $run
row 'no such tokenizer' 3 'x.json' : tokenize x.json
row 'merge of no token' 3 'tokenizer.json' \
    "sed -i '/\"merges\": \[/a [\"no such\", \"token\"],' $tokenizer" tokenize m

# ---- data ---------------------------------------------------------------------------------------
row 'no data' 3 'x.txt' : $run --data x.txt
row 'data is a folder' 1 'm' : $run --data m
row 'empty data' 4 'e.txt' ': >e.txt' $run --data e.txt
row 'empty data of eval' 4 'e.txt' ': >e.txt' eval m $cpu --data e.txt
row 'not UTF-8' 4 'b.txt' 'printf "good text \xff bad" >b.txt' $run --data b.txt
row 'character cut off' 4 'b.txt' 'printf "good text \xe2\x82" >b.txt' eval m $cpu --data b.txt
row 'gzip cut' 4 't.txt.gz' 'gzip t.txt; cut_to t.txt.gz 60' $run --data t.txt.gz
row 'gzip damaged' 4 't.txt.gz' \
    'gzip t.txt; printf "\xff\xff\xff" | dd of=t.txt.gz bs=1 seek=30 conv=notrunc status=none' \
    $run --data t.txt.gz
row 'JSONL without the field' 3 'line 2' \
    'printf "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n" >d.jsonl' $run --data d.jsonl
row 'JSONL of another field' 3 'body' 'printf "{\"text\": \"a\"}\n" >d.jsonl' \
    $run --data d.jsonl --field body
row 'JSONL not a string' 3 'line 1' 'echo "{\"text\": 5}" >d.jsonl' $run --data d.jsonl
row 'JSONL no JSON' 3 'line 2' 'printf "{\"text\": \"a\"}\n{\"text\": \n" >d.jsonl' $run --data d.jsonl
row 'JSONL empty' 4 'd.jsonl' ': >d.jsonl' $run --data d.jsonl
row 'one token' 4 'o.bin' 'printf "\x05\x00" >o.bin' eval m $cpu --tokens o.bin
row 'no token' 4 'o.bin' ': >o.bin' $run --tokens o.bin
row 'half a token' 3 'o.bin' 'printf "\x05\x00\x06" >o.bin' $run --tokens o.bin
row 'id out of range' 4 '2048' 'printf "\x05\x00\x00\x08" >o.bin' $run --tokens o.bin
row 'id out of range, logits' 4 '65535' 'printf "\xff\xff" >o.bin' \
    logits m $cpu --tokens o.bin -o l.safetensors
row 'ids of unknown kind' 3 't.txt' : $run --tokens t.txt
row 'npy magic' 3 'a.npy' 'echo NUMPY >a.npy' $run --tokens a.npy
row 'npy of floats' 3 'a.npy' \
    "npy a.npy \"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\" '\0\0\0\0'" $run --tokens a.npy
row 'npy in Fortran order' 3 'a.npy' \
    "npy a.npy \"{'descr': '<i4', 'fortran_order': True, 'shape': (1, 1), }\" '\5\0\0\0'" \
    $run --tokens a.npy
row 'npy cut' 3 'a.npy' \
    "npy a.npy \"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }\" '\5\0\0\0'" $run --tokens a.npy
row 'npy negative id' 4 '-1' \
    "npy a.npy \"{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }\" '\xff\xff\xff\xff'" \
    $run --tokens a.npy
row 'ids from weights' 3 'model.safetensors' : $run --tokens $weights
row 'prompt not UTF-8' 4 'UTF-8' : generate m $cpu --prompt $'\xff'

# ---- tokenize -----------------------------------------------------------------------------------
row 'line no JSON' 3 'line 1' 'echo hello >l' tokenize m --data l
row 'line without text' 3 'line 2' 'printf " \n{\"x\": 1}\n" >l' tokenize m --data l
row 'lone surrogate' 3 'line 1' 'echo "{\"text\": \"\\ud800\"}" >l' tokenize m --data l
row 'text not UTF-8' 3 'line 1' 'printf "{\"text\": \"\xff\"}\n" >l' tokenize m --data l
row 'ids not integers' 3 'line 1' 'echo "{\"ids\": [1.5]}" >l' tokenize m --decode --data l
row 'ids negative' 3 'line 1' 'echo "{\"ids\": [-1]}" >l' tokenize m --decode --data l
row 'id of no token' 4 '99999' 'echo "{\"ids\": [99999]}" >l' tokenize m --decode --data l
row 'no lines file' 3 'nothing' : tokenize m --data nothing

# ---- records ------------------------------------------------------------------------------------
scales="scales r $cpu"
take='cp $work/record r'
row 'no record' 3 'r: cannot open' : $scales
row 'folder without a record' 3 'm/calibration.safetensors' : scales m $cpu
row 'record of weights, scales' 3 "expected 'fp8calib.record'" : scales $weights $cpu
row 'record empty' 3 'r' ': >r' $scales
row 'record cut in its header' 3 'r' "$take; cut_to r 100" $scales
row 'record cut in its rows' 3 'r' "$take; cut_to r $(($(stat -c %s "$work/record") - 1))" $scales
row 'record of another version' 3 "version: expected '1'" \
    "$take; sub r '\"version\":\"1\"' '\"version\":\"9\"'" $scales
row 'record whose recipe is no JSON' 3 'r: recipe' "$take; sub r '{\"tool\":' '[\"tool\":'" $scales
row 'record without a point' 3 "'lm_head.input.amax_history' is missing" \
    "$take; sub r 'lm_head.input.amax_history\"' 'lm_head.input.amax_hystory\"'" $scales
row 'record with a NaN amax' 3 "'lm_head.input.amax_history'[0]" \
    "$take; poke r lm_head.input.amax_history '\x00\x00\xc0\x7f'" $scales
row 'record with a negative amax' 3 'is no amax' \
    "$take; poke r lm_head.input.amax_history '\x00\x00\x80\xbf'" $scales
row 'record with negative tokens' 3 "'tokens'[0]" \
    "$take; poke r tokens '\xff\xff\xff\xff\xff\xff\xff\xff'" $scales
row 'record of no steps' 3 'r' "$take; sub r '\"steps_done\":\"1\"' '\"steps_done\":\"0\"'" $scales
row 'record of another model' 4 'another checkpoint' \
    "$take; sub r '\"source_bytes\":\"2' '\"source_bytes\":\"3'" $scales --model m -o out
row 'percentile of a record without histograms' 4 'no histograms to read a clip from' "$take" \
    $scales --calibrator percentile
row 'percentile and no calibrator' 2 '--calibrator percentile' "$take" $scales --percentile 99
row 'percentile too small' 2 "--percentile '49.9': expected a number from 50 to 100" : \
    $scales --percentile 49.9
row 'percentile too large' 2 "--percentile '100.01'" : $scales --percentile 100.01
row 'percentile no number' 2 "--percentile 'nan'" : $scales --percentile nan
row 'percentile with an exponent' 2 "--percentile '1e2'" : $scales --percentile 1e2
row 'percentile of two points' 2 "--percentile '99.9.9'" : $scales --percentile 99.9.9
row 'percentile empty' 2 "--percentile ''" : run m --percentile=
row 'calibrator' 2 "--calibrator 'kl'" : run m --calibrator kl
row 'rounding' 2 "--round 'up'" : run m --round up
row 'damping' 2 '--gptq-damping' : run m --round gptq --gptq-damping -1
row 'no damping' 2 '--gptq-damping 0' : run m --round gptq --gptq-damping 0
row 'scales twice' 2 '--weight-scales mse' : run m --round gptq --weight-scales mse
row 'more than all in BF16' 2 '--keep-bf16' : run m --keep-bf16 101
row 'percentile of run alone' 2 '--calibrator percentile' : run m --percentile 99
row 'unfinished record' 4 'resume' \
    "$take; sub r '\"steps_total\":\"1\"' '\"steps_total\":\"2\"'" $scales --model m -o out
row 'record for an FP8 model' 3 'already quantized' "$take; $fp8" $scales --model m -o out
row 'model without output' 2 '--output is required' "$take" $scales --model m
row 'choices without a model' 2 'need --model' "$take" $scales --kv none
row 'mode without a model' 2 'need --model' "$take" $scales --fp8-format hybrid
row 'attention without scales of KV' 2 '--fp8-attention mha' "$take" \
    $scales --model m -o out --kv none --fp8-attention mha
row 'scales over a file' 5 't.txt: exists already' "$take" $scales -o t.txt
row 'scales over their record' 2 'replace their record' "$take" $scales -o r --force
row 'scales over their record by another name' 2 'replace their record' "$take; ln -s r l" \
    $scales -o l --force
row 'scales over the model' 2 'model itself' "$take" $scales --model m -o m --force
row 'scales into no folder' 1 "no folder 'deep'" "$take" $scales -o deep/s.json

# ---- where output goes --------------------------------------------------------------------------
row 'output exists' 5 'out: exists already' 'mkdir out' $run
row 'output exists, convert' 5 'out: exists already' 'mkdir out' convert m -o out $cpu
row 'output exists, logits' 5 'l.safetensors: exists already' ': >l.safetensors' \
    logits m $cpu --tokens ids.bin -o l.safetensors
row 'record exists' 5 '--resume' ': >out.calibration.safetensors' $run
row 'record broken' 3 'out.calibration.safetensors' 'echo hello >out.calibration.safetensors' \
    $run --resume
row 'force over the model' 2 'model itself' : convert m -o m --force $cpu
row 'force over its parent' 2 'model itself' 'mkdir p; mv m p/m' convert p/m -o p --force $cpu
row 'force over something else' 5 'no checkpoint folder' 'mkdir home; cp t.txt home' \
    convert m -o home --force $cpu
row 'force over a file' 5 'no checkpoint folder' : convert m -o t.txt --force $cpu
row 'force over a folder, logits' 5 'is a folder' 'mkdir l' \
    logits m $cpu --tokens ids.bin -o l --force
row 'no folder for the output' 1 "no folder 'deep'" : run m -o deep/out $cpu --samples 2 --no-eval
row 'a file for a folder' 1 "no folder 't.txt'" : convert m -o t.txt/out $cpu
if [ "$(id -u)" != 0 ]; then
    row 'folder not writable' 1 "folder 'locked'" 'mkdir -m 555 locked' convert m -o locked/out $cpu
fi

"$fp8calib" help >/dev/full 2>"$work/err"
[ $? = 1 ] && [ "$(wc -l <"$work/err")" = 1 ] || complain 'standard output full' 'want exit code 1'

echo "$rows rows, $failures failures"
[ "$failures" = 0 ]
