"""`fp8calib convert` beside a numpy script and `cp`: GB/s over the page cache, and memory.

    python3 bench/convert_peers.py BUILD_DIR WORK_DIR [--gb 4] [--threads 2] [--repeats 5]
        [--schemes dynamic,tensor] [--skip-script] [--compare] [--torch]

Makes a random BF16 checkpoint of a Llama's shapes in WORK_DIR (kept there; of Llama-3-8B's width
from 2 GB on), reads it once, and takes the best of the repeats of
    ours     fp8calib convert, with and without --no-sync
    script   numpy + ml_dtypes + safetensors: the same codes and scales, one tensor at a time,
             shard by shard, with and without an fsync of what it wrote
    torch    with --torch: the script with torch's tensors and casts in place of numpy's
    cp       of the weights, with and without an fsync
`beyond files` is the largest RssAnon seen in /proc, every 5 ms: memory that is no mapped file's.
With --compare the scripts' tensors are held against ours, byte by byte. Needs numpy, ml_dtypes,
safetensors."""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
from safetensors import safe_open

ALIGN = 4096


# ---- the checkpoint ------------------------------------------------------------------------------

def shapes(gigabytes):
    """(config, [(name, shape)]) of about so many GB in BF16."""
    big = gigabytes >= 2
    hidden, ffn, vocab = (4096, 14336, 32000) if big else (2048, 8192, 16000)
    kv = hidden // 4
    layer = [("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
             ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)),
             ("mlp.gate_proj", (ffn, hidden)), ("mlp.up_proj", (ffn, hidden)),
             ("mlp.down_proj", (hidden, ffn))]
    norms = [("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,))]
    per_layer = sum(2 * int(np.prod(s)) for _, s in layer)
    layers = max(1, round((gigabytes * 1e9 - 4 * vocab * hidden) / per_layer))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
              "intermediate_size": ffn, "num_hidden_layers": layers, "vocab_size": vocab,
              "num_attention_heads": hidden // 128, "num_key_value_heads": kv // 128,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    tensors = [("model.embed_tokens.weight", (vocab, hidden)), ("lm_head.weight", (vocab, hidden)),
               ("model.norm.weight", (hidden,))]
    for i in range(layers):
        tensors += [(f"model.layers.{i}.{n}.weight", s) for n, s in layer + norms]
    return config, tensors


def make(folder, gigabytes, shards):
    config, tensors = shapes(gigabytes)
    rng = np.random.default_rng(0)
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f)
    pool = (rng.standard_normal(1 << 24, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    weight_map = {}
    for k in range(shards):
        name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        own = tensors[k * len(tensors) // shards:(k + 1) * len(tensors) // shards]
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in own:
            end = at + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            weight_map[tensor], at = name, end
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % ALIGN)
        with open(f"{folder}/{name}", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for _, shape in own:
                left = int(np.prod(shape))
                while left:  # pieces of one pool of random values, from a random place on
                    begin = int(rng.integers(len(pool)))
                    piece = pool[begin:begin + left]
                    f.write(piece.tobytes())
                    left -= len(piece)
    with open(f"{folder}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": 0}, "weight_map": weight_map}, f)


# ---- the script, run as a process of its own -----------------------------------------------------

def quantize(w, scheme, amax=None):
    x = w.astype(np.float32)
    if scheme == "dynamic":
        amax = np.abs(x).max(axis=1, keepdims=True)
    scale = np.float32(448) / np.float32(amax)
    codes = np.clip(x * scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.view(np.uint8), np.asarray(np.float32(amax) / np.float32(448), np.float32)


def quantize_torch(w, scheme, amax=None):
    import torch
    x = w.float()
    if scheme == "dynamic":
        amax = x.abs().amax(dim=1, keepdim=True)
    amax = torch.as_tensor(amax, dtype=torch.float32)
    most = torch.tensor(448.0)  # a plain 448 would be multiplied by a reciprocal
    return (x * (most / amax)).clamp(-448, 448).to(torch.float8_e4m3fn), amax / most


def script(source, out, scheme, sync, package):
    """Scheme tensor: q, k, v share a scale, and gate, up: their amax is taken first."""
    if package == "torch":
        from safetensors.torch import save_file
        framework, make_codes = "pt", quantize_torch
    else:
        from safetensors.numpy import save_file
        framework, make_codes = "np", quantize
    os.makedirs(out)
    paths = sorted(glob.glob(f"{source}/*.safetensors"))
    group = {}
    kept = ("embed_tokens", "lm_head", "norm")
    for path in paths if scheme == "tensor" else ():
        with safe_open(path, framework=framework) as f:
            for name in f.keys():
                if not any(k in name for k in kept):
                    key, w = group_of(name), f.get_tensor(name)
                    one = np.float32(w.abs().max().float() if package == "torch" else
                                     np.abs(w.astype(np.float32)).max())
                    group[key] = max(group.get(key, np.float32(0)), one)
    for path in paths:
        tensors = {}
        with safe_open(path, framework=framework) as f:
            for name in f.keys():
                w = f.get_tensor(name)
                if any(k in name for k in kept):
                    tensors[name] = w
                    continue
                codes, descale = make_codes(w, scheme, group.get(group_of(name)))
                tensors[name] = codes
                tensors[name + "_scale"] = descale
        target = f"{out}/{os.path.basename(path)}"
        save_file(tensors, target)
        if sync:
            sync_file(target)


def group_of(name):
    for a, b in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
        name = name.replace(a, b)
    return name


def sync_file(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


# ---- measuring -----------------------------------------------------------------------------------

def beyond_files(pid):
    try:
        with open(f"/proc/{pid}/status") as f:
            fields = dict(line.split(":", 1) for line in f)
        return int(fields["RssAnon"].split()[0]) / 1024
    except (OSError, KeyError):
        return 0.0


def run(command, out, repeats, after=None):
    """Best seconds, least processor seconds, largest MB beyond mapped files, bytes written."""
    best, busy, memory, size = float("inf"), float("inf"), 0.0, 0
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        before = os.times()
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            memory = max(memory, beyond_files(process.pid))
            time.sleep(0.005)
        if process.returncode:
            sys.exit(f"{command}: exit {process.returncode}")
        if after:
            after()
        best = min(best, time.monotonic() - start)
        after_it = os.times()
        busy = min(busy, after_it.children_user - before.children_user +
                   after_it.children_system - before.children_system)
        size = sum(os.path.getsize(p) for p in glob.glob(f"{out}/*.safetensors"))
    return best, busy, memory, size


def tensors_of(folder):
    """name -> (file, first byte, last)."""
    found = {}
    for path in glob.glob(f"{folder}/*.safetensors"):
        with open(path, "rb") as f:
            head = int.from_bytes(f.read(8), "little")
            for name, t in json.loads(f.read(head)).items():
                if name != "__metadata__":
                    found[name] = (path, *(8 + head + at for at in t["data_offsets"]))
    return found


def bytes_of(path, begin, end):
    with open(path, "rb") as f:
        f.seek(begin)
        return f.read(end - begin)


def compare(ours, theirs):
    """Every tensor of the script's output has the same bytes in ours."""
    mine, others = tensors_of(ours), tensors_of(theirs)
    for name, where in others.items():
        if bytes_of(*where) != bytes_of(*mine[name]):
            sys.exit(f"{name}: bytes differ")
    print(f"{len(others)} tensors have the script's bytes")


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--as-script":
        return script(*sys.argv[2:5], sys.argv[5] == "sync", sys.argv[6])
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("work")
    p.add_argument("--gb", type=float, default=4)
    p.add_argument("--shards", type=int, default=2)
    p.add_argument("--threads", default="2")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--schemes", default="dynamic,tensor")
    p.add_argument("--skip-script", action="store_true")
    p.add_argument("--skip-sync", action="store_true")
    p.add_argument("--only-sync", action="store_true")
    p.add_argument("--compare", action="store_true")
    p.add_argument("--torch", action="store_true")
    a = p.parse_args()
    source, out = f"{a.work}/source-{a.gb:g}", f"{a.work}/out"
    if not os.path.exists(source):
        make(source, a.gb, a.shards)
    files = sorted(glob.glob(f"{source}/*.safetensors"))
    size = sum(os.path.getsize(f) for f in files)
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    own = [sys.executable, os.path.abspath(__file__)]
    print(f"{size / 1e9:.2f} GB of BF16 in {len(files)} shards, best of {a.repeats}, "
          f"{a.threads} threads, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print("| what | s | processor s | GB/s of input | GB/s read + written | MB beyond files |\n"
          "|---|---|---|---|---|---|")

    def row(name, command, repeats, after=None):
        seconds, busy, memory, written = run(command, out, repeats, after)
        print(f"| {name} | {seconds:.2f} | {busy:.2f} | {size / seconds / 1e9:.2f} | "
              f"{(size + written) / seconds / 1e9:.2f} | {memory:.0f} |", flush=True)
        return seconds

    def sync_out():
        for path in glob.glob(f"{out}/*.safetensors"):
            sync_file(path)

    for sync in ("no-sync", "sync")[a.only_sync:2 - a.skip_sync]:
        row(f"cp, {sync}", ["sh", "-c", 'mkdir "$1" && cp "$0"/*.safetensors "$1"', source, out],
            a.repeats, sync_out if sync == "sync" else None)
        for scheme in a.schemes.split(","):
            command = [f"{a.build}/fp8calib", "convert", source, "-o", out, "--device", "cpu",
                       "--threads", a.threads, "--scheme", scheme, "--quiet"]
            ours = row(f"ours, {scheme}, {sync}",
                       command + (["--no-sync"] if sync == "no-sync" else []), a.repeats)
            if a.skip_script or scheme not in ("dynamic", "tensor"):
                continue
            if a.compare:
                os.rename(out, out + "-ours")
            for package in ("numpy", "torch")[:1 + a.torch]:
                theirs = row(f"script, {package}, {scheme}, {sync}",
                             own + ["--as-script", source, out, scheme, sync, package], 2)
                print(f"  {scheme}, {sync}: {theirs / ours:.1f} x the script with {package}")
                if a.compare:
                    compare(out + "-ours", out)
            shutil.rmtree(out + "-ours", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
