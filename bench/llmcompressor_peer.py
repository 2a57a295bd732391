"""llm-compressor's FP8 checkpoints beside ours, judged by `fp8calib eval` window by window.

    python3 bench/llmcompressor_peer.py BUILD_DIR DATA_DIR OUT_DIR [--models a,b] [--tokens 0]
                                          [--schemes a,b] [--max-windows 0] [--device cpu]

Per model and scheme (static tensors with FP8 keys and values; channels and tokens; blocks), plain
and GPTQ: llmcompressor.oneshot on text/wikitext2_valid.txt, cut into samples of the model's window
(--tokens in all; 0: the whole text), and `fp8calib run` on the same ids, without FP8 queries, which
llm-compressor has not. Judged on text/wikitext2_test.txt (its first --max-windows windows; 0: all).
Needs llmcompressor, torch, transformers, tokenizers, numpy. GPT-2 is left out: llm-compressor takes
torch.nn.Linear alone."""
import argparse
import json
import os
import shutil
import subprocess
import time

import numpy as np

WINDOW = {"sample-1m": 256, "gemma-7m": 512, "llama-11m": 512}
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
SCHEMES = [  # ours, theirs, keys and values
    ("tensor", "FP8", KV),
    ("dynamic", "FP8_DYNAMIC", None),
    ("block", "FP8_BLOCK", None),
]


def ids_of(args, model):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(f"{args.data}/models/{model}/tokenizer.json")
    with open(f"{args.data}/text/wikitext2_valid.txt", encoding="utf-8") as f:
        ids = tokenizer.encode(f.read()).ids
    rows = len(ids) // WINDOW[model]
    ids = np.array(ids[:rows * WINDOW[model]], np.int32).reshape(rows, -1)
    return ids[:args.tokens // WINDOW[model]] if args.tokens else ids


def theirs(args, model, scheme, kv, gptq, ids, out):
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM
    loaded = AutoModelForCausalLM.from_pretrained(f"{args.data}/models/{model}",
                                                  dtype=torch.bfloat16)
    kind = GPTQModifier if gptq else QuantizationModifier
    recipe = kind(targets="Linear", scheme=scheme, ignore=["lm_head"], kv_cache_scheme=kv)
    data = Dataset.from_dict({"input_ids": ids.tolist(),
                              "attention_mask": np.ones_like(ids).tolist()})
    start = time.monotonic()
    if scheme == "FP8" or gptq:
        oneshot(model=loaded, dataset=data, recipe=recipe, max_seq_length=ids.shape[1],
                num_calibration_samples=len(ids), batch_size=8)
    else:
        oneshot(model=loaded, recipe=recipe)
    seconds = time.monotonic() - start
    loaded.save_pretrained(out, save_compressed=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if os.path.exists(f"{args.data}/models/{model}/{name}"):
            shutil.copy(f"{args.data}/models/{model}/{name}", out)
    return seconds


def ours(args, model, scheme, kv, gptq, ids, out):
    np.save(f"{out}.npy", ids)
    command = [f"{args.build}/fp8calib", "run", f"{args.data}/models/{model}", "--tokens",
               f"{out}.npy", "--samples", str(len(ids)), "--seq", str(ids.shape[1]), "--scheme",
               scheme, "--device", args.device, "--kv", "fp8" if kv else "none", "--fp8-attention",
               "none", "--no-eval", "--force", "--quiet", "--json", "-o", out,
               *(["--round", "gptq"] if gptq else [])]
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def judge(args, model, outs):
    done = subprocess.run([f"{args.build}/fp8calib", "eval", f"{args.data}/models/{model}", *outs,
                           "--data", f"{args.data}/text/wikitext2_test.txt", "--window",
                           str(WINDOW[model]), "--device", args.device, "--json", "--per-window",
                           "--quiet",
                           *(["--max-windows", str(args.max_windows)] if args.max_windows else [])],
                          check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["models"]


def mean_error(values, tokens):
    """Of sum(values) / sum(tokens) over windows: (mean, standard error)."""
    mean = values.sum() / tokens.sum()
    spread = values - mean * tokens
    return mean, np.sqrt((spread ** 2).sum() * len(values) / (len(values) - 1)) / tokens.sum()


def row(model, what, seconds, bf16, judged):
    tokens, nll0 = np.array(bf16["windows"]["tokens"]), np.array(bf16["windows"]["nll"])
    kl, kl_error = mean_error(np.array(judged["windows"]["kl"]), tokens)
    cost, error = mean_error(np.array(judged["windows"]["nll"]) - nll0, tokens)
    print(f"| {model} | {what} | {kl:.5f} ± {kl_error:.5f} | {100 * np.expm1(cost):+.2f} ± "
          f"{100 * np.exp(cost) * error:.2f} | {100 * judged['top1']:.2f} | {seconds:.1f} |",
          flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("build"), p.add_argument("data"), p.add_argument("out")
    p.add_argument("--models", default=",".join(WINDOW), type=lambda s: s.split(","))
    p.add_argument("--tokens", default=0, type=int)
    p.add_argument("--schemes", default="", type=lambda s: s.split(",") if s else [])
    p.add_argument("--device", default="cpu")
    p.add_argument("--max-windows", default=0, type=int)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    print("| model | checkpoint | KL, nats | cost % | top-1 % | s |\n|---|---|---|---|---|---|")
    for model in args.models:
        ids, names, seconds, outs = ids_of(args, model), [], [], []
        for scheme, name, kv in SCHEMES:
            if args.schemes and scheme not in args.schemes:
                continue
            for gptq in (False, True):
                for maker, make, how in (("llm-compressor", theirs, name), ("ours", ours, scheme)):
                    out = f"{args.out}/{model}-{maker}-{name}-{'gptq' if gptq else 'plain'}"
                    shutil.rmtree(out, ignore_errors=True)
                    seconds.append(make(args, model, how, kv, gptq, ids, out))
                    names.append(f"{name}, {'gptq' if gptq else 'plain'}, {maker}")
                    outs.append(out)
        bf16, *judged = judge(args, model, outs)
        for what, s, m in zip(names, seconds, judged):
            row(model, what, s, bf16, m)


if __name__ == "__main__":
    main()
