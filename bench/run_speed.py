"""The main job on one GPU: `fp8calib run` beside a plain PyTorch script, over the page cache.

    python3 bench/run_speed.py BUILD_DIR WORK_DIR [--preset gemma-7b|llama-8b|small]
        [--parts ours,layers,torch] [--repeats 2] [--gpu-memory 8GB] [--disk FOLDER]

Makes a random BF16 checkpoint (gemma-7b: 28 layers, hidden 3072, 16 heads of 256, ffn 24576, vocab
256000, 4 shards, 17 GB; llama-8b: 16 GB) and 512 sequences of token ids (of 512; llama-8b: of 2048)
in WORK_DIR, reads all of it once, and times in the order of --parts
    ours          fp8calib run --tokens ... --no-eval --no-sync, and its own timeline
    layers        the same with --gpu-memory, once; its bytes against those of `ours`
    torch         a process that loads the BF16 tensors, runs the forward with a hook on every
                  Linear that keeps max |x|, quantizes the weights and saves: no report, no fsync
    ours-synced, torch-synced     once each, with fsync, the output in the folder of --disk
    histograms    the first 64 sequences (small: all) without and with --histograms, twice
Memory is the largest RssAnon seen. TFLOP/s: products of Linears over the time of `calibrate`.
Needs numpy; torch's script needs torch, safetensors and transformers."""
import argparse
import concurrent.futures
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

GEMMA = {"model": "gemma", "layers": 28, "hidden": 3072, "heads": 16, "kv_heads": 16, "dim": 256,
         "ffn": 24576, "vocab": 256000, "shards": 4, "seq": 512, "tied": True,
         "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
         "rope_theta": 10000.0}
PRESETS = {
    "gemma-7b": GEMMA,
    "llama-8b": {"model": "llama", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8,
                 "dim": 128, "ffn": 14336, "vocab": 128256, "shards": 4, "seq": 2048,
                 "tied": False, "hidden_act": "silu", "rope_theta": 500000.0},
    "small": {**GEMMA, "layers": 3, "vocab": 32000, "shards": 2, "few": 512},
}
CLASSES = {"gemma": "GemmaForCausalLM", "llama": "LlamaForCausalLM"}
SAMPLES, BATCH = 512, 8


# ---- the checkpoint ------------------------------------------------------------------------------

def tensors_of(p):
    widths = {"q_proj": p["heads"] * p["dim"], "k_proj": p["kv_heads"] * p["dim"],
              "v_proj": p["kv_heads"] * p["dim"]}
    yield "model.embed_tokens.weight", (p["vocab"], p["hidden"])
    for i in range(p["layers"]):
        layer = f"model.layers.{i}."
        for name, width in widths.items():
            yield f"{layer}self_attn.{name}.weight", (width, p["hidden"])
        yield f"{layer}self_attn.o_proj.weight", (p["hidden"], widths["q_proj"])
        yield f"{layer}mlp.gate_proj.weight", (p["ffn"], p["hidden"])
        yield f"{layer}mlp.up_proj.weight", (p["ffn"], p["hidden"])
        yield f"{layer}mlp.down_proj.weight", (p["hidden"], p["ffn"])
        yield f"{layer}input_layernorm.weight", (p["hidden"],)
        yield f"{layer}post_attention_layernorm.weight", (p["hidden"],)
    yield "model.norm.weight", (p["hidden"],)
    if not p["tied"]:
        yield "lm_head.weight", (p["vocab"], p["hidden"])


def linear_parameters(p):
    return sum(math.prod(shape) for name, shape in tensors_of(p) if "_proj." in name)


def random_pool(count):
    """BF16 bits of `count` normal values of deviation 0.02."""
    import numpy as np
    x = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(0.02)
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_shard(path, tensors, pool, norm):
    """Weights are runs of the pool, each from a random place on; norms are `norm`, BF16 bits."""
    header, at, pieces = {"__metadata__": {"format": "pt"}}, 0, []
    rng = random.Random(path)
    for name, shape in tensors:
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        while len(shape) > 1 and at < end:
            begin = rng.randrange(len(pool) // 2)
            run = pool[begin:begin + (end - at) // 2]
            pieces.append((at, run))
            at += 2 * len(run)
        if len(shape) == 1:
            pieces.append((at, norm[:shape[0]]))
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    os.pwrite(fd, len(text).to_bytes(8, "little") + text, 0)
    os.ftruncate(fd, 8 + len(text) + at)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        done = [threads.submit(os.pwrite, fd, memoryview(run), 8 + len(text) + offset)
                for offset, run in pieces]
        for (_, run), future in zip(pieces, done):
            if future.result() != run.nbytes:
                sys.exit(f"{path}: short write")
    os.close(fd)


def make(folder, p):
    import numpy as np
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as f:
        config = {"architectures": [CLASSES[p["model"]]], "model_type": p["model"],
                  "hidden_size": p["hidden"], "intermediate_size": p["ffn"],
                  "num_hidden_layers": p["layers"], "num_attention_heads": p["heads"],
                  "num_key_value_heads": p["kv_heads"], "head_dim": p["dim"],
                  "vocab_size": p["vocab"], "max_position_embeddings": 8192,
                  "rms_norm_eps": 1e-6, "tie_word_embeddings": p["tied"], "bos_token_id": 2,
                  "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "bfloat16"}
        config.update((k, p[k]) for k in ("hidden_act", "hidden_activation", "rope_theta")
                      if k in p)
        json.dump(config, f)
    every, shards, weight_map = list(tensors_of(p)), p["shards"], {}
    values = random_pool(1 << 25)
    norm = np.full(p["hidden"], 0 if p["model"] == "gemma" else 0x3f80, np.uint16)
    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        done = []
        for k in range(shards):
            name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
            own = every[k * len(every) // shards:(k + 1) * len(every) // shards]
            weight_map.update(dict.fromkeys((n for n, _ in own), name))
            done.append(pool.submit(write_shard, f"{folder}/{name}", own, values, norm))
        for future in done:
            future.result()
    with open(f"{folder}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": 0}, "weight_map": weight_map}, f)
    ids = np.random.default_rng(1).integers(3, p["vocab"], (SAMPLES, p["seq"]), dtype=np.int32)
    np.save(f"{folder}/ids.npy", ids)


# ---- the script, a process of its own ------------------------------------------------------------

def torch_script(source, out, sync):
    start = time.monotonic()
    marks = []

    def mark(what):
        torch.cuda.synchronize()
        marks.append((what, time.monotonic() - start))

    import glob
    import numpy as np
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    mark("import")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source),
                                                 dtype=torch.bfloat16)
    state, where = {}, {}
    for path in sorted(glob.glob(f"{source}/*.safetensors")):
        with safe_open(path, framework="pt", device="cuda") as f:
            for name in f.keys():
                state[name], where[name] = f.get_tensor(name), os.path.basename(path)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    with torch.device("cuda"):  # what is no tensor of the checkpoint
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        for module in model.modules():
            if hasattr(module, "embed_scale"):
                module.embed_scale = torch.tensor(model.config.hidden_size ** 0.5)
    mark("load")
    amax = {}

    def hook(name):
        def keep(_, inputs):
            one = inputs[0].abs().amax()
            amax[name] = torch.maximum(amax[name], one) if name in amax else one
        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook(name))
    ids = torch.from_numpy(np.load(f"{source}/ids.npy").astype(np.int64)).cuda()
    with torch.inference_mode():
        for i in range(0, len(ids), BATCH):
            model.model(ids[i:i + BATCH], use_cache=False)
    mark("forward")
    os.makedirs(out)
    shards = {}
    for name, w in state.items():
        shard = shards.setdefault(where[name], {})
        module = name[:-len(".weight")]
        if module not in amax:
            shard[name] = w.cpu()
            continue
        top = w.abs().amax().float()
        codes = (w.float() * (448 / top)).clamp(-448, 448).to(torch.float8_e4m3fn)
        shard[name] = codes.cpu()
        shard[name + "_scale"] = (top / 448).reshape(1).cpu()
        shard[module + ".input_scale"] = (amax[module].float() / 448).reshape(1).cpu()
    mark("quantize")
    for name, shard in shards.items():
        save_file(shard, f"{out}/{name}", {"format": "pt"})
        if sync:
            fd = os.open(f"{out}/{name}", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    mark("save")
    print(json.dumps(marks))


# ---- measuring -----------------------------------------------------------------------------------

def measure(command):
    """(seconds, in words: when its last output came, largest RssAnon and VmRSS, largest GPU memory,
    mean clock; stdout)"""
    texts = [tempfile.TemporaryFile("w+") for _ in range(2)]  # a pipe would fill up
    watch = subprocess.Popen(["nvidia-smi", "--query-gpu=memory.used,clocks.sm,power.draw",
                              "--format=csv,noheader,nounits", "-lms", "250"],
                             stdout=texts[1])
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=texts[0])
    anon = most = size = said = 0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as f:
                fields = dict(line.split(":", 1) for line in f)
            anon = max(anon, int(fields["RssAnon"].split()[0]))
            most = max(most, int(fields["VmRSS"].split()[0]))
        except (OSError, KeyError, ValueError):
            pass
        if os.fstat(texts[0].fileno()).st_size != size:
            size, said = os.fstat(texts[0].fileno()).st_size, time.monotonic()
        time.sleep(0.02)
    end = time.monotonic()
    watch.terminate()
    watch.wait()
    for text in texts:
        text.seek(0)
    out = texts[0].read()
    if process.returncode:
        print(f"{command}: exit {process.returncode}", flush=True)
    rows = [[float(x) for x in line.split(",")] for line in texts[1].read().splitlines()
            if line.count(",") == 2]
    busy = [r for r in rows if r[2] > 500] or rows or [[0, 0, 0]]
    words = (f"{end - (said or end):.2f} s after its last output; {anon / 1024:.0f} MB anonymous, "
             f"{most / 1024:.0f} MB with mapped files; GPU {max(r[0] for r in rows or busy):.0f} "
             f"MB, {sum(r[1] for r in busy) / len(busy):.0f} MHz and "
             f"{sum(r[2] for r in busy) / len(busy):.0f} W where busy")
    return end - start, words, out


def ours(a, p, out, more=(), sync=False, samples=SAMPLES):
    """Runs it, says how it went; seconds of `calibrate`."""
    source = f"{a.work}/{a.preset}"
    command = [f"{a.build}/fp8calib", "run", source, "-o", out, "--tokens", f"{source}/ids.npy",
               "--samples", str(samples), "--seq", str(p["seq"]), "--batch", str(BATCH),
               "--no-eval", "--json", "--quiet", "--device", "cuda", *more]
    if not sync:
        command.append("--no-sync")
    shutil.rmtree(out, ignore_errors=True)
    seconds, words, text = measure(command)
    try:
        parts = json.loads(text)["seconds"]
    except (ValueError, KeyError):
        sys.exit(f"no result: {text[:500]}")
    flops = 2 * linear_parameters(p) * samples * p["seq"]
    print(f"ours {' '.join(more)}{' with fsync' if sync else ''}: {seconds:.2f} s; " +
          ", ".join(f"{k} {v:.2f}" for k, v in parts.items()) +
          f"; {flops / parts['calibrate'] / 1e12:.0f} TFLOP/s; {words}", flush=True)
    return parts["calibrate"]


def peer(a, out, sync=False):
    shutil.rmtree(out, ignore_errors=True)
    seconds, words, text = measure([sys.executable, os.path.abspath(__file__), "--as-torch",
                                    f"{a.work}/{a.preset}", out, "sync" if sync else "no-sync"])
    print(f"torch{' with fsync' if sync else ''}: {seconds:.2f} s; up to: {text.strip()}; {words}",
          flush=True)


def layers(a, p, out):
    streamed = out + "-streamed"
    ours(a, p, streamed, ["--gpu-memory", a.gpu_memory])
    if os.path.exists(f"{out}/config.json"):  # of `ours`, not the script's
        subprocess.run(f"cmp {out}/model.safetensors {streamed}/model.safetensors "
                       "&& echo the same bytes", shell=True, check=False)
    shutil.rmtree(streamed)


def histograms(a, p, out):
    times = {"": [], "--histograms": []}
    for _ in range(2):
        for more, seconds in times.items():
            seconds.append(ours(a, p, out, more.split(), samples=p.get("few", 64)))
    without, with_them = (min(t) for t in times.values())
    print(f"histograms: calibrate {without:.2f} -> {with_them:.2f} s, "
          f"{100 * (with_them / without - 1):+.1f} %", flush=True)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--as-torch":
        return torch_script(sys.argv[2], sys.argv[3], sys.argv[4] == "sync")
    if len(sys.argv) > 1 and sys.argv[1] == "--as-maker":
        return make(sys.argv[2], PRESETS[sys.argv[3]])
    a = argparse.ArgumentParser()
    a.add_argument("build")
    a.add_argument("work")
    a.add_argument("--preset", default="gemma-7b", choices=PRESETS)
    a.add_argument("--parts", default="ours,layers,torch")
    a.add_argument("--repeats", type=int, default=2)
    a.add_argument("--gpu-memory", default="8GB")
    a.add_argument("--disk")
    a = a.parse_args()
    p = PRESETS[a.preset]
    source, out = f"{a.work}/{a.preset}", f"{a.work}/out"
    synced = f"{a.disk or a.work}/synced"
    runs = {
        "ours": lambda: [ours(a, p, out) for _ in range(a.repeats)],
        "layers": lambda: layers(a, p, out),
        "torch": lambda: peer(a, out),
        "ours-synced": lambda: ours(a, p, synced, sync=True),
        "torch-synced": lambda: peer(a, synced, sync=True),
        "histograms": lambda: histograms(a, p, out),
    }
    start = time.monotonic()
    if os.path.exists(source):
        subprocess.run(f"cat {source}/*.safetensors > /dev/null", shell=True, check=True)
    else:
        subprocess.run([sys.executable, os.path.abspath(__file__), "--as-maker", source, a.preset],
                       check=True)
    print(f"made in {time.monotonic() - start:.1f} s; {os.cpu_count()} processors", flush=True)
    for part in a.parts.split(",") if a.parts else []:
        runs[part]()
        shutil.rmtree(synced, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
