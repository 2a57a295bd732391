"""Opens FP8 checkpoints that fp8calib wrote as others do, and holds them against our own runtime.

    python3 tests/interop/transformers_load.py BUILD_DIR MODEL-FP8 [MODEL-FP8 ...]

Per checkpoint: (1) every tensor opens in the `safetensors` package; (2) transformers with
compressed-tensors loads it without a missing weight; (3) its dequantized weights equal ours (code *
descale in float32, codes decoded by libfp8rt) exactly; (4) its forward equals ours with the same
quantizations. Which those are is counted while it runs; ours then runs on a copy of the checkpoint
without the scales that it left alone.

Like with like is float32 on both sides: in BF16 the loader rounds the scales too. One E4M3 code
that rounds the other way, by the last bit of a sum, is 6 % of an element, and grows to the size of
the quantization error itself in the layers and tokens behind it. So tokens that no flip reached are
counted, in short sequences: a fifth of all must agree to 1e-5 (a forward that differs in Q alone
has a sixteenth, the first tokens), and all together to 5e-2 relative L2. BF16 flips codes
everywhere: there their forward may be no further from ours than 1.25 times as far as from itself in
float32.

Exit 77 where torch, transformers or compressed-tensors are missing."""
import collections
import ctypes
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import transformers
    import compressed_tensors.modeling
    from compressed_tensors.quantization.lifecycle import forward as ct_forward
    from safetensors import safe_open
    from safetensors.numpy import load_file
    from safetensors.torch import save_file
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

SHORT, LONG = (32, 16), (2, 256)  # sequences, tokens each
EXACT, BAR = 1e-5, 5e-2           # relative L2: of a token that no flip reached; of all logits
MIN_EXACT = 0.2                   # share of such tokens
calls = collections.Counter()     # of their quantizer: "input", "k", "v", "q", "weight"


def count_quantizer_calls():
    """Every quantization of their forward goes through one function, imported here and there."""
    original = ct_forward.forward_quantize

    def counted(module, value, base_name, args):
        calls[base_name] += 1
        return original(module, value, base_name, args)

    for name, module in list(sys.modules.items()):
        if name.startswith("compressed_tensors.") and \
                vars(module).get("forward_quantize") is original:
            module.forward_quantize = counted


def decode_table(build):
    """256 E4M3 codes as libfp8rt decodes them."""
    text = open(os.path.join(os.path.dirname(__file__), "../../core/dtype.h")).read()
    names = [l.split("(")[1].split(",")[0] for l in text.splitlines()
             if l.strip().startswith("X(") and '"' in l]
    lib = ctypes.CDLL(os.path.join(build, "libfp8rt.so"))
    lib.fp8_to_f32.restype = ctypes.c_float
    e4m3 = names.index("E4M3")
    return np.array([lib.fp8_to_f32(e4m3, ctypes.c_uint8(c)) for c in range(256)], np.float32)


def read_tensors(folder):
    """{name: tensor} and the metadata of the first file, by the safetensors package."""
    tensors, metadata = {}, {}
    for file in sorted(f for f in os.listdir(folder) if f.startswith("model") and
                       f.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "pt") as f:
            metadata = metadata or f.metadata() or {}
            tensors.update({name: f.get_tensor(name) for name in f.keys()})
    return tensors, metadata


def our_weights(tensors, table):
    """{module: float32 weight} of every FP8 tensor."""
    return {name[:-len(".weight")]: table[t.view(torch.uint8).numpy()] *
            tensors[name + "_scale"].numpy().astype(np.float32)
            for name, t in tensors.items() if t.dtype == torch.float8_e4m3fn}


def relative(a, b):
    return float(np.linalg.norm((a - b).ravel().astype(np.float64)) /
                 np.linalg.norm(b.ravel().astype(np.float64)))


def share_exact(a, b):
    """Share of tokens whose logits agree."""
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (a, b))
    return float(np.mean(np.linalg.norm(a - b, axis=1) <= EXACT * np.linalg.norm(b, axis=1)))


# ---- their forward -------------------------------------------------------------------------------

def load(folder, dtype):
    """Their model, the names it missed and the last parts of those it did not know."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True)
    missing = [k for k in info["missing_keys"] if "lm_head" not in k]
    return model.eval(), missing, {k.rsplit(".", 1)[1] for k in info["unexpected_keys"]}


def run_theirs(model, ids):
    with torch.no_grad():
        z = model(torch.tensor(ids, device=model.device, dtype=torch.long)).logits
    return z.float().cpu().numpy()


def compare_weights(model, ours, table):
    """Modules whose weight is not ours, bit for bit in float32."""
    different = []
    for name, module in model.named_modules():
        if name not in ours:
            continue
        weight = module.weight.detach().cpu()
        if weight.dtype == torch.float8_e4m3fn:  # still compressed: before the first forward
            scale = module.weight_scale.detach().float().cpu().numpy()
            got = table[weight.view(torch.uint8).numpy()] * scale
        else:
            got = weight.float().numpy()
        if not np.array_equal(got, ours[name]):
            different.append(name)
    return different


# ---- ours ----------------------------------------------------------------------------------------

def run_ours(build, folder, ids, *options):
    with tempfile.TemporaryDirectory() as tmp:
        np.save(tmp + "/ids.npy", ids)
        subprocess.run([os.path.join(build, "fp8calib"), "logits", folder, "--tokens",
                        tmp + "/ids.npy", "-o", tmp + "/z.safetensors", "--quiet", *options],
                       check=True, stdout=subprocess.DEVNULL)
        return load_file(tmp + "/z.safetensors")["logits"].reshape(*ids.shape, -1)


def write_like(folder, out, tensors, metadata, applied, ours):
    """The checkpoint for our forward with the quantizations of `applied` only: scales that it left
    alone are gone; where it took no inputs the weights are dense."""
    config = json.load(open(os.path.join(folder, "config.json")))
    kept = dict(tensors)
    if not applied["k"] or not applied["v"]:
        config["quantization_config"]["kv_cache_scheme"] = None
        kept = {n: t for n, t in kept.items() if not n.endswith((".k_scale", ".v_scale"))}
    if not applied["q"]:
        metadata = {**metadata, "fp8calib.attention": "none"}
        kept = {n: t for n, t in kept.items() if not n.endswith(".q_scale")}
    if not applied["input"]:
        del config["quantization_config"]
        kept = {n: torch.tensor(ours[n[:-len(".weight")]]) if n[:-len(".weight")] in ours else t
                for n, t in kept.items() if not n.endswith("_scale")}
    json.dump(config, open(os.path.join(out, "config.json"), "w"))
    save_file(kept, os.path.join(out, "model.safetensors"), metadata)


# ---- the verdict ---------------------------------------------------------------------------------

def check_counts(applied, weights, layers):
    """What their forward quantized is all of a kind or none of it; and no weight anew."""
    whole = {"input": weights, "k": layers, "v": layers, "q": layers}
    told = ", ".join(f"{applied[k]} {k}" for k in whole) + f", {applied['weight']} weight"
    print(f"  quantizer calls of its forward: {told}")
    return all(applied[k] in (0, n) for k, n in whole.items()) and not applied["weight"] and \
        bool(applied["k"]) == bool(applied["v"]) and bool(applied["input"] or not applied["k"])


def compare_f32(build, folder, like, theirs, ids):
    ours = run_ours(build, like, ids, "--device", "cpu", "--compute", "fp32")
    whole = run_ours(build, folder, ids, "--device", "cpu", "--compute", "fp32")
    error, exact = relative(theirs, ours), share_exact(theirs, ours)
    print(f"  float32, {ids.shape[0]} x {ids.shape[1]} tokens, same quantizations: {100 * exact:.0f} "
          f"% of the tokens agree to {EXACT}, relative L2 {error:.4f}; against our whole FP8 "
          f"forward: {100 * share_exact(theirs, whole):.0f} %, {relative(theirs, whole):.4f}",
          flush=True)
    return error <= BAR and exact >= MIN_EXACT


def compare_bf16(build, folder, like, f32, bf16, ids):
    error, own = relative(bf16, run_ours(build, like, ids)), relative(bf16, f32)
    whole = relative(bf16, run_ours(build, folder, ids))
    print(f"  BF16, {ids.shape[0]} x {ids.shape[1]} tokens: from ours with the same quantizations "
          f"{error:.4f}, from our whole FP8 forward {whole:.4f}, from itself in float32 {own:.4f}",
          flush=True)
    return error <= 1.25 * own


def check(build, folder, table, ids):
    tensors, metadata = read_tensors(folder)
    ours = our_weights(tensors, table)
    print(f"{folder}: {len(tensors)} tensors open, {len(ours)} of them FP8 weights", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    short, long = (ids[:n * t].reshape(n, t) for n, t in (SHORT, LONG))

    exact, missing, unknown = load(folder, torch.float32)  # in BF16 the loader rounds the scales
    different = compare_weights(exact, ours, table)
    calls.clear()
    theirs = run_theirs(exact, short)  # on the CPU; the first forward decompresses
    applied = calls.copy()
    different += compare_weights(exact, ours, table)
    print(f"  missing {missing}, not known to it {sorted(unknown)}; dequantized weights in "
          f"float32: {len(ours)} compared, {len(different)} differ")
    good = not missing and not different and \
        check_counts(applied, len(ours), exact.config.num_hidden_layers)
    with tempfile.TemporaryDirectory() as like:
        write_like(folder, like, tensors, metadata, applied, ours)
        good &= compare_f32(build, folder, like, theirs, short)
        f32 = run_theirs(exact, long)
        bf16 = run_theirs(load(folder, torch.bfloat16)[0].to(device), long)
        good &= compare_bf16(build, folder, like, f32, bf16, long)
    return good


def main():
    build, folders = sys.argv[1], sys.argv[2:]
    print("transformers", transformers.__version__, "compressed-tensors",
          compressed_tensors.__version__, "torch", torch.__version__)
    count_quantizer_calls()
    table = decode_table(build)
    text = open(os.path.join(os.path.dirname(__file__), "../../examples/evaluation.txt")).read()
    good = True
    for folder in folders:
        line = subprocess.run([os.path.join(build, "fp8calib"), "tokenize", folder], check=True,
                              input=json.dumps({"text": text}), text=True,
                              stdout=subprocess.PIPE).stdout
        good &= check(build, folder, table, np.array(json.loads(line)["ids"][:512], np.int32))
    print("every checkpoint agrees" if good else "FAILED")
    return 0 if good else 1


sys.exit(main())
