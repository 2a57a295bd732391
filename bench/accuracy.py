"""What FP8 costs by calibrator, rounding and scheme, with standard errors over paired windows.

    python3 bench/accuracy.py BUILD_DIR DATA_DIR OUT_DIR [--device cpu] [--models a,b] [--rows a,b]
                              [--draws 0]

Per model every checkpoint of ROWS is made by `fp8calib run` (calibrated on the whole of
text/wikitext2_valid.txt in samples of the model's window) and judged on the whole of
text/wikitext2_test.txt by `fp8calib eval --per-window`. Errors are standard errors of sums over
windows: of the mean KL, and of the cost, 100 (exp(nll - nll of BF16) - 1), of the window's own
difference to BF16; "less" compares with the first row of the scheme, window by window. --draws: the
first row and "gptq" made anew from as many other orders of the calibration text (bench/spread.py's
kind "data"), to see how far a cost moves by itself. Needs numpy."""
import argparse
import json
import os
import shutil
import subprocess

import numpy as np

WINDOW = {"sample-1m": 256, "gpt2-3m": 256, "gemma-7m": 512, "llama-11m": 512}
GPTQ = ["--round", "gptq"]
PARTS = [["--gptq-target", "weight"], ["--gptq-scales", "amax"], ["--gptq-turn", "off"]]
ROWS = [  # scheme, name, options
    ("tensor", "max, nearest", []),
    ("tensor", "moving average, nearest", ["--amax-algo", "moving_average"]),
    ("tensor", "percentile 99.99, nearest", ["--calibrator", "percentile"]),
    ("tensor", "MSE, nearest", ["--calibrator", "mse"]),
    ("tensor", "entropy, nearest", ["--calibrator", "entropy"]),
    ("tensor", "max, gptq of the weights alone", GPTQ + sum(PARTS, [])),
    ("tensor", "max, gptq towards the output", GPTQ + sum(PARTS[1:], [])),
    ("tensor", "searched, gptq towards the output", GPTQ + PARTS[2]),
    ("tensor", "gptq", GPTQ),
    ("tensor", "max, nearest, 10 % BF16", ["--keep-bf16", "10"]),
    ("tensor", "gptq, 10 % BF16", GPTQ + ["--keep-bf16", "10"]),
    ("dynamic", "max, nearest", []),
    ("dynamic", "gptq", GPTQ),
    ("block", "max, nearest", []),
    ("block", "gptq", GPTQ),
]


def make(args, model, scheme, options, out, text):
    command = [f"{args.build}/fp8calib", "run", f"{args.data}/models/{model}", "--data", text,
               "--samples", "4096", "--seq", str(WINDOW[model]), "--scheme", scheme, "--device",
               args.device, "--threads", str(args.threads), "--no-eval", "--force", "--quiet",
               "--json", "-o", out, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def judge(args, model, outs):
    done = subprocess.run([f"{args.build}/fp8calib", "eval", f"{args.data}/models/{model}", *outs,
                           "--data", f"{args.data}/text/wikitext2_test.txt", "--window",
                           str(WINDOW[model]), "--device", args.device, "--threads",
                           str(args.threads), "--json", "--per-window", "--quiet"], check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["models"]


def mean_error(values, tokens):
    """Of sum(values) / sum(tokens) over windows: (mean, standard error)."""
    mean = values.sum() / tokens.sum()
    spread = values - mean * tokens
    return mean, np.sqrt((spread ** 2).sum() * len(values) / (len(values) - 1)) / tokens.sum()


def table(model, rows, bf16, judged):
    tokens = np.array(bf16["windows"]["tokens"], float)
    nll0, first = np.array(bf16["windows"]["nll"]), {}
    for (scheme, name, _), made, m in zip(rows, [r["made"] for r in judged], judged):
        kl, nll = np.array(m["windows"]["kl"]), np.array(m["windows"]["nll"])
        k, k_error = mean_error(kl, tokens)
        d, d_error = mean_error(nll - nll0, tokens)
        cost, cost_error = 100 * np.expm1(d), 100 * np.exp(d) * d_error
        first.setdefault(scheme, (kl, nll, k, cost))
        kl1, nll1, k1, cost1 = first[scheme]
        dk, dk_error = mean_error(kl - kl1, tokens)
        dd, dd_error = mean_error(nll - nll1, tokens)
        less = "" if kl is kl1 else (f"{100 * dk / k1:+.1f} ± {100 * dk_error / k1:.1f} | "
                                     f"{100 * dd:+.2f} ± {100 * dd_error:.2f} "
                                     f"({100 * (cost / cost1 - 1):+.0f} %)")
        seconds = made["seconds"].get("round", 0)
        print(f"| {model} | {scheme} | {name} | {k:.5f} ± {k_error:.5f} | {cost:+.2f} ± "
              f"{cost_error:.2f} | {100 * m['top1']:.2f} | {less or ' | '} | "
              f"{made['output_bytes'] / 1e6:.2f} | {seconds:.1f} |", flush=True)


def draws(args, model):
    """Mean and deviation of KL and cost of the first row and gptq over other orders of the data."""
    with open(f"{args.data}/text/wikitext2_valid.txt", encoding="utf-8") as f:
        lines = f.read().splitlines(keepends=True)
    blocks = [lines[i * len(lines) // 64:(i + 1) * len(lines) // 64] for i in range(64)]
    outs = {"nearest": [], "gptq": []}
    for seed in range(args.draws):
        text = f"{args.out}/{model}-{seed}.txt"
        order = np.random.default_rng(seed).permutation(64)
        with open(text, "w", encoding="utf-8") as f:
            f.writelines(line for b in order for line in blocks[b])
        for name, options in (("nearest", []), ("gptq", GPTQ)):
            out = f"{args.out}/{model}-{name}-{seed}"
            make(args, model, "tensor", options, out, text)
            outs[name].append(out)
        os.remove(text)
    for name, made in outs.items():
        bf16, *mine = judge(args, model, made)
        cost = np.array([100 * (m["perplexity"] / bf16["perplexity"] - 1) for m in mine])
        kl = np.array([m["kl"] for m in mine])
        print(f"| {model} | {name} | {args.draws} | {kl.mean():.5f} | {kl.std(ddof=1):.5f} | "
              f"{cost.mean():+.2f} | {cost.std(ddof=1):.2f} |", flush=True)
    for out in outs["nearest"] + outs["gptq"]:
        shutil.rmtree(out)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("build"), p.add_argument("data"), p.add_argument("out")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", default=0, type=int)
    p.add_argument("--models", default=",".join(WINDOW), type=lambda s: s.split(","))
    p.add_argument("--rows", default="", type=lambda s: [int(i) for i in s.split(",") if i])
    p.add_argument("--draws", default=0, type=int)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    text = f"{args.data}/text/wikitext2_valid.txt"
    print("| model | scheme | what | KL, nats | cost % | top-1 % | KL less % | nll less, points "
          "(of the cost) | MB | round s |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in args.models:
        rows, made = [], []
        for i, row in enumerate(ROWS):
            if (args.rows and i not in args.rows) or (model == "gpt2-3m" and row[0] == "block"):
                continue  # blocks are not run where weights are kept [in, out]
            out = f"{args.out}/{model}-{i}"
            shutil.rmtree(out, ignore_errors=True)
            result = make(args, model, row[0], row[2], out, text)
            if result:
                rows.append(row)
                made.append((out, result))
            else:
                print(f"| {model} | {row[0]} | {row[1]} | not made | | | | | | |", flush=True)
        bf16, *judged = judge(args, model, [out for out, _ in made])
        for m, (_, result) in zip(judged, made):
            m["made"] = result
        table(model, rows, bf16, judged)
        for out, _ in made:
            shutil.rmtree(out)
        if args.draws:
            draws(args, model)


main()
