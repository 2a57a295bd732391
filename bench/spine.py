"""The main job on the four shared models, judged: run -> FP8 checkpoint -> perplexity.

    python3 bench/spine.py BUILD_DIR DATA_DIR OUT_DIR [--devices cuda,cpu] [--models a,b]
                           [--max-windows N] [--simulate]

Per model and device: `fp8calib run` (twice on the first device: the bytes must be equal),
calibrated on text/wikitext2_valid.txt with the defaults, then `fp8calib eval` of BF16 and FP8 on
text/wikitext2_test.txt by the recipe of the reference figures. Between devices: largest relative
difference of a scale. With --simulate also what the same checkpoints cost by tests/sim_fp8.py,
which shares no code with the runtime. Prints one table; exit status 1 when a bar is missed.
Standard library only; the simulation needs what it says."""
import argparse
import filecmp
import json
import os
import shutil
import struct
import subprocess
import sys
import time

WINDOW = {"sample-1m": 256, "gpt2-3m": 256, "gemma-7m": 512, "llama-11m": 512}
FP8_BAR = {"llama-11m": 2.4, "gemma-7m": 1.0, "gpt2-3m": 3.0, "sample-1m": 2.1}  # per cent
BF16_BAR = 0.3
SCALE_BAR = 0.03
SIMULATION_BAR = 0.3  # points of cost


def reference(data, model):
    """transformers' BF16 perplexity on the test text, wherever reference.json keeps it."""
    r = json.load(open(f"{data}/models/{model}/reference.json"))
    return r.get("wikitext2_test_ppl_bf16") or r["wikitext2_test"]["ppl_bf16"]


def scales(folder):
    """{name: value} of every one-element F32 tensor in a checkpoint folder."""
    found = {}
    for file in sorted(os.listdir(folder)):
        if not (file.startswith("model") and file.endswith(".safetensors")):
            continue
        with open(f"{folder}/{file}", "rb") as f:
            raw = f.read()
        size = struct.unpack("<Q", raw[:8])[0]
        for name, t in json.loads(raw[8:8 + size]).items():
            if name != "__metadata__" and t["dtype"] == "F32" and t["shape"] in ([], [1]):
                begin = 8 + size + t["data_offsets"][0]
                found[name] = struct.unpack("<f", raw[begin:begin + 4])[0]
    return found


def same_bytes(a, b):
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and \
        all(filecmp.cmp(f"{a}/{n}", f"{b}/{n}", shallow=False) for n in names)


def command(*words):
    begin = time.time()
    done = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout, time.time() - begin


def judge(args, model, device):
    """One row of figures."""
    tool, source = f"{args.build}/fp8calib", f"{args.data}/models/{model}"
    out = f"{args.out}/{model}-{device}-FP8"
    run = [tool, "run", source, "--data", f"{args.data}/text/wikitext2_valid.txt", "--device",
           device, "--no-eval", "--force", "--quiet", "-o"]
    _, seconds = command(*run, out)
    row = {"model": model, "device": device, "run_s": seconds, "out": out}
    if device == args.devices[0]:
        command(*run, out + "-again")
        row["same"] = same_bytes(out, out + "-again")
        shutil.rmtree(out + "-again")
    windows = ["--max-windows", args.max_windows] if args.max_windows else []
    text, row["eval_s"] = command(tool, "eval", source, out, "--data",
                                  f"{args.data}/text/wikitext2_test.txt", "--window", WINDOW[model],
                                  "--device", device, "--json", "--quiet", *windows)
    bf16, fp8 = json.loads(text)["models"]
    row.update(bf16=bf16["perplexity"], fp8=fp8["perplexity"], tokens=bf16["tokens"], kl=fp8["kl"],
               top1=fp8["top1"])
    row["delta"] = 100 * (row["fp8"] / row["bf16"] - 1)
    row["off"] = 100 * (row["bf16"] / reference(args.data, model) - 1)
    return row


def simulate(args, model, rows):
    """Adds to each row what its checkpoint costs by the simulation."""
    source, ids = f"{args.data}/models/{model}", f"{args.out}/{model}-ids.json"
    with open(f"{args.data}/text/wikitext2_test.txt", encoding="utf-8") as f:
        text = f.read()
    with open(ids, "w") as f:
        subprocess.run([f"{args.build}/fp8calib", "tokenize", source], check=True, text=True,
                       input=json.dumps({"text": text}), stdout=f)
    simulation = os.path.join(os.path.dirname(__file__), "../tests/sim_fp8.py")
    text, _ = command(sys.executable, simulation, ids, source, *[r["out"] for r in rows],
                      "--window", WINDOW[model], "--max-windows", args.max_windows)
    bf16, *fp8 = [json.loads(line)["perplexity"] for line in text.splitlines()]
    for row, perplexity in zip(rows, fp8):
        row["simulated"] = 100 * (perplexity / bf16 - 1)


def missed(args, r):
    """A line for each bar that a row misses."""
    at = f"{r['model']} {r['device']}"
    if not args.max_windows and not abs(r["off"]) <= BF16_BAR:
        yield f"{at}: BF16 {r['off']:+.3f} % off the reference"
    if not r["delta"] <= FP8_BAR[r["model"]]:
        yield f"{at}: FP8 costs {r['delta']:+.2f} %"
    if not r.get("same", True):
        yield f"{at}: two runs gave different bytes"
    if not abs(r.get("simulated", r["delta"]) - r["delta"]) <= SIMULATION_BAR:
        yield f"{at}: FP8 costs {r['delta']:+.2f} %, simulated {r['simulated']:+.2f}"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build"), p.add_argument("data"), p.add_argument("out")
    p.add_argument("--devices", default="cuda,cpu", type=lambda s: s.split(","))
    p.add_argument("--models", default=",".join(WINDOW), type=lambda s: s.split(","))
    p.add_argument("--max-windows", default=0, type=int)
    p.add_argument("--simulate", action="store_true")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    bad = []
    print("| model | device | BF16 ppl | off reference % | FP8 ppl | cost % | bar % | simulated % "
          "| KL | top-1 | tokens | run s | eval s |\n" + "|---" * 13 + "|", flush=True)
    for model in args.models:
        rows = [judge(args, model, device) for device in args.devices]
        if args.simulate:
            simulate(args, model, rows)
        for r in rows:
            simulated = f"{r['simulated']:+.2f}" if args.simulate else ""
            print(f"| {model} | {r['device']} | {r['bf16']:.4f} | {r['off']:+.3f} | "
                  f"{r['fp8']:.4f} | {r['delta']:+.2f} | {FP8_BAR[model]:+.1f} | {simulated} | "
                  f"{r['kl']:.4f} | {r['top1']:.4f} | {r['tokens']} | {r['run_s']:.1f} | "
                  f"{r['eval_s']:.1f} |", flush=True)
            bad += missed(args, r)
        if len(rows) > 1:
            a, b = scales(rows[0]["out"]), scales(rows[1]["out"])
            worst = max((abs(a[n] / b[n] - 1), n) for n in a)
            print(f"  {len(a)} scales, {rows[0]['device']} against {rows[1]['device']}: "
                  f"largest difference {100 * worst[0]:.3f} % ({worst[1]})", flush=True)
            if set(a) != set(b) or not worst[0] <= SCALE_BAR:
                bad.append(f"{model}: scales differ by {100 * worst[0]:.2f} %")
    print("\n".join(["MISSED: " + line for line in bad] or ["every bar met"]))
    return 1 if bad else 0


sys.exit(main())
