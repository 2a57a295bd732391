"""The main job on one GPU: `fp8calib run` beside a plain PyTorch script, over the page cache.

    python3 bench/run_speed.py BUILD_DIR WORK_DIR [--preset gemma-7b|small] [--parts ours,torch]
        [--repeats 2] [--gpu-memory 8G] [--sync]

Makes a random BF16 checkpoint (gemma-7b: 28 layers, hidden 3072, 16 heads of 256, ffn 24576, vocab
256000, 4 shards, 17 GB) and 512 sequences of 512 token ids in WORK_DIR, reads all of it once, and
times
    ours    fp8calib run --tokens ... --no-eval (--no-sync unless --sync), and its own timeline
    torch   a process that loads the BF16 tensors, runs the forward with a hook on every Linear that
            keeps max |x|, quantizes the weights and saves: no report, no fsync unless --sync
Memory is the largest RssAnon seen. TFLOP/s: products of Linears over the time of `calibrate`.
Needs torch and safetensors; torch's script needs transformers."""
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

PRESETS = {
    "gemma-7b": {"layers": 28, "hidden": 3072, "heads": 16, "dim": 256, "ffn": 24576,
                 "vocab": 256000, "shards": 4},
    "small": {"layers": 3, "hidden": 3072, "heads": 16, "dim": 256, "ffn": 24576, "vocab": 32000,
              "shards": 2},
}
SAMPLES, SEQ, BATCH = 512, 512, 8


# ---- the checkpoint ------------------------------------------------------------------------------

def tensors_of(p):
    inner = p["heads"] * p["dim"]
    yield "model.embed_tokens.weight", (p["vocab"], p["hidden"])
    for i in range(p["layers"]):
        layer = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj"):
            yield f"{layer}self_attn.{name}.weight", (inner, p["hidden"])
        yield f"{layer}self_attn.o_proj.weight", (p["hidden"], inner)
        yield f"{layer}mlp.gate_proj.weight", (p["ffn"], p["hidden"])
        yield f"{layer}mlp.up_proj.weight", (p["ffn"], p["hidden"])
        yield f"{layer}mlp.down_proj.weight", (p["hidden"], p["ffn"])
        yield f"{layer}input_layernorm.weight", (p["hidden"],)
        yield f"{layer}post_attention_layernorm.weight", (p["hidden"],)
    yield "model.norm.weight", (p["hidden"],)


def linear_parameters(p):
    return p["layers"] * (4 * p["heads"] * p["dim"] * p["hidden"] + 3 * p["ffn"] * p["hidden"])


def random_pool(count):
    """BF16 bits of `count` normal values of deviation 0.02."""
    import numpy as np
    x = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(0.02)
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_shard(path, tensors, pool):
    """Weights are runs of the pool, each from a random place on; norms are zeros. Many threads."""
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
        json.dump({"architectures": ["GemmaForCausalLM"], "model_type": "gemma",
                   "hidden_size": p["hidden"], "intermediate_size": p["ffn"],
                   "num_hidden_layers": p["layers"], "num_attention_heads": p["heads"],
                   "num_key_value_heads": p["heads"], "head_dim": p["dim"],
                   "vocab_size": p["vocab"], "max_position_embeddings": 8192,
                   "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
                   "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                   "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
                   "torch_dtype": "bfloat16"}, f)
    every, shards, weight_map = list(tensors_of(p)), p["shards"], {}
    values = random_pool(1 << 25)
    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        done = []
        for k in range(shards):
            name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
            own = every[k * len(every) // shards:(k + 1) * len(every) // shards]
            weight_map.update(dict.fromkeys((n for n, _ in own), name))
            done.append(pool.submit(write_shard, f"{folder}/{name}", own, values))
        for future in done:
            future.result()
    with open(f"{folder}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": 0}, "weight_map": weight_map}, f)
    ids = np.random.default_rng(1).integers(3, p["vocab"], (SAMPLES, SEQ), dtype=np.int32)
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
    """(seconds, in words: largest RssAnon and VmRSS, largest GPU memory, mean clock; stdout)"""
    texts = [tempfile.TemporaryFile("w+") for _ in range(2)]  # a pipe would fill up
    watch = subprocess.Popen(["nvidia-smi", "--query-gpu=memory.used,clocks.sm,power.draw",
                              "--format=csv,noheader,nounits", "-lms", "250"],
                             stdout=texts[1])
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=texts[0])
    anon = most = 0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as f:
                fields = dict(line.split(":", 1) for line in f)
            anon = max(anon, int(fields["RssAnon"].split()[0]))
            most = max(most, int(fields["VmRSS"].split()[0]))
        except (OSError, KeyError, ValueError):
            pass
        time.sleep(0.02)
    seconds = time.monotonic() - start
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
    words = (f"{anon / 1024:.0f} MB anonymous, {most / 1024:.0f} MB with mapped files; GPU "
             f"{max(r[0] for r in rows or busy):.0f} MB, {sum(r[1] for r in busy) / len(busy):.0f} "
             f"MHz and {sum(r[2] for r in busy) / len(busy):.0f} W where busy")
    return seconds, words, out


def ours(a, p, source, out, more):
    command = [f"{a.build}/fp8calib", "run", source, "-o", out, "--tokens", f"{source}/ids.npy",
               "--samples", str(SAMPLES), "--seq", str(SEQ), "--batch", str(BATCH), "--no-eval",
               "--json", "--quiet", "--device", "cuda", *more]
    if not a.sync:
        command.append("--no-sync")
    flops = 2 * linear_parameters(p) * SAMPLES * SEQ
    for _ in range(a.repeats):
        shutil.rmtree(out, ignore_errors=True)
        seconds, words, text = measure(command)
        try:
            parts = json.loads(text)["seconds"]
        except (ValueError, KeyError):
            print(f"no result: {text[:500]}", flush=True)
            return
        print(f"ours {' '.join(more)}: {seconds:.2f} s; " +
              ", ".join(f"{k} {v:.2f}" for k, v in parts.items()) +
              f"; {flops / parts['calibrate'] / 1e12:.0f} TFLOP/s; {words}", flush=True)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--as-torch":
        return torch_script(sys.argv[2], sys.argv[3], sys.argv[4] == "sync")
    if len(sys.argv) > 1 and sys.argv[1] == "--as-maker":
        return make(sys.argv[2], PRESETS[sys.argv[3]])
    a = argparse.ArgumentParser()
    a.add_argument("build")
    a.add_argument("work")
    a.add_argument("--preset", default="gemma-7b", choices=PRESETS)
    a.add_argument("--parts", default="ours,torch")
    a.add_argument("--repeats", type=int, default=2)
    a.add_argument("--gpu-memory")
    a.add_argument("--sync", action="store_true")
    a = a.parse_args()
    p = PRESETS[a.preset]
    source, out = f"{a.work}/{a.preset}", f"{a.work}/out"
    start = time.monotonic()
    if os.path.exists(source):
        subprocess.run(f"cat {source}/*.safetensors > /dev/null", shell=True, check=True)
    else:
        subprocess.run([sys.executable, os.path.abspath(__file__), "--as-maker", source, a.preset],
                       check=True)
    print(f"made in {time.monotonic() - start:.1f} s; {os.cpu_count()} processors", flush=True)
    if "ours" in a.parts:
        ours(a, p, source, out, [])
    if a.gpu_memory:
        if "ours" in a.parts:
            os.rename(out, out + "-whole")
        a.repeats = 1
        ours(a, p, source, out, ["--gpu-memory", a.gpu_memory])
        if "ours" in a.parts:
            subprocess.run(f"cmp {out}/model.safetensors {out}-whole/model.safetensors "
                           "&& echo the same bytes", shell=True)
            shutil.rmtree(out + "-whole")
    if "torch" in a.parts:
        shutil.rmtree(out, ignore_errors=True)
        seconds, words, text = measure(
            [sys.executable, os.path.abspath(__file__), "--as-torch", source, out,
             "sync" if a.sync else "no-sync"])
        print(f"torch: {seconds:.2f} s; up to: {text.strip()}; {words}", flush=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
