"""How far the perplexity cost of FP8 moves when only the draw of the rounding changes.

    python3 bench/spread.py BUILD_DIR DATA_DIR OUT_DIR [--device cpu] [--models a,b] [--draws 12]

Per model, the default checkpoint and three kinds of redraws, judged on the whole of
text/wikitext2_test.txt by `fp8calib eval`:
    data   calibrated on the blocks of text/wikitext2_valid.txt in another order (weights stay)
    nudge  every descale times 2^u, u drawn from [0, 1/32), weights quantized anew
    phase  the same with u from [0, 1)
A larger descale clips nothing and E4M3's relative error hardly depends on it, so each draw is as
good a checkpoint as the default one. Seeds are fixed. Needs numpy."""
import argparse
import glob
import json
import os
import shutil
import subprocess

import numpy as np

WINDOW = {"sample-1m": 256, "gpt2-3m": 256, "gemma-7m": 512, "llama-11m": 512}
BITS = {"BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8}
BLOCKS = 64
SHARED = (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj"))


def tensors(path):
    """The file as a writable array, and {name: array that views it}."""
    data = np.fromfile(path, np.uint8)
    end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    views = {}
    for name, t in json.loads(data[8:end].tobytes()).items():
        if name != "__metadata__":
            begin, stop = (end + offset for offset in t["data_offsets"])
            views[name] = data[begin:stop].view(BITS[t["dtype"]]).reshape(t["shape"])
    return data, views


def e4m3(x):
    """Codes of the nearest E4M3 values, ties to even, saturated."""
    size = np.minimum(abs(x), 448)
    exponent = np.frexp(np.maximum(size, 2.0 ** -6))[1] - 1
    eighths = np.rint(np.ldexp(size, 3 - exponent)).astype(np.int32)  # 16 carries by itself
    return ((exponent + 6) * 8 + eighths + 128 * np.signbit(x)).astype(np.uint8)


def redraw(base, source, out, rng, octaves):
    """out = base with every descale times 2^u; weights of one descale keep sharing it."""
    weights, factors = {}, {}
    for path in sorted(glob.glob(f"{source}/model*.safetensors")):
        weights.update(tensors(path)[1])
    shutil.copytree(base, out)
    for path in sorted(glob.glob(f"{out}/model*.safetensors")):
        data, views = tensors(path)
        for name in sorted(n for n in views if n.endswith("_scale")):
            key = name
            for other, first in SHARED:
                key = key.replace(other, first)
            factors.setdefault(key, np.float32(2 ** (octaves * rng.random())))
            views[name][...] *= factors[key]
            if name.endswith(".weight_scale"):
                weight = name[:-len("_scale")]
                bf16 = (weights[weight].astype(np.uint32) << 16).view(np.float32)
                views[weight][...] = e4m3(bf16 / views[name])
        data.tofile(path)


def run(args, model, text, out):
    subprocess.run([f"{args.build}/fp8calib", "run", f"{args.data}/models/{model}", "--data", text,
                    "--device", args.device, "--no-eval", "--force", "--quiet", "-o", out],
                   check=True, stdout=subprocess.DEVNULL)


def draw(args, model, kind, base):
    """Folders of the redraws of one kind."""
    source, outs = f"{args.data}/models/{model}", []
    with open(f"{args.data}/text/wikitext2_valid.txt", encoding="utf-8") as f:
        lines = f.read().splitlines(keepends=True)
    blocks = [lines[i * len(lines) // BLOCKS:(i + 1) * len(lines) // BLOCKS]
              for i in range(BLOCKS)]
    for seed in range(args.draws):
        rng, out = np.random.default_rng(seed), f"{args.out}/{model}-{kind}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        if kind == "data":
            text = f"{args.out}/{model}-{seed}.txt"
            with open(text, "w", encoding="utf-8") as f:
                f.writelines(line for b in rng.permutation(BLOCKS) for line in blocks[b])
            run(args, model, text, out)
            os.remove(text)
        else:
            redraw(base, source, out, rng, 1 / 32 if kind == "nudge" else 1)
        outs.append(out)
    return outs


def judge(args, model, kind, base):
    outs = draw(args, model, kind, base)
    done = subprocess.run([f"{args.build}/fp8calib", "eval", f"{args.data}/models/{model}", base,
                           *outs, "--data", f"{args.data}/text/wikitext2_test.txt", "--window",
                           str(WINDOW[model]), "--device", args.device, "--json", "--quiet"],
                          check=True, stdout=subprocess.PIPE, text=True)
    bf16, *fp8 = json.loads(done.stdout)["models"]
    cost = np.array([100 * (m["perplexity"] / bf16["perplexity"] - 1) for m in fp8])
    kl = np.array([m["kl"] for m in fp8])
    print(f"| {model} | {args.device} | {kind} | {cost[0]:+.2f} | {cost[1:].mean():+.2f} | "
          f"{cost[1:].std(ddof=1):.2f} | {cost[1:].min():+.2f} .. {cost[1:].max():+.2f} | "
          f"{kl[0]:.4f} | {kl[1:].mean():.4f} | {kl[1:].std(ddof=1):.4f} |", flush=True)
    for out in outs:
        shutil.rmtree(out)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build"), p.add_argument("data"), p.add_argument("out")
    p.add_argument("--device", default="cpu")
    p.add_argument("--models", default=",".join(WINDOW), type=lambda s: s.split(","))
    p.add_argument("--kinds", default="data,nudge,phase", type=lambda s: s.split(","))
    p.add_argument("--draws", default=12, type=int, help="2 .. 14")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    print("| model | device | draws of | cost % | mean | sd | range | KL | mean | sd |\n"
          "|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in args.models:
        base = f"{args.out}/{model}-base"
        run(args, model, f"{args.data}/text/wikitext2_valid.txt", base)
        for kind in args.kinds:
            judge(args, model, kind, base)


main()
