"""Opens FP8 checkpoints that fp8calib wrote as others do, and holds them against our own runtime.

    python3 tests/interop/transformers_load.py BUILD_DIR MODEL-FP8 [MODEL-FP8 ...]

Per checkpoint: (1) every tensor opens in the `safetensors` package; (2) transformers with
compressed-tensors loads it without a missing or unexpected weight; (3) its dequantized weights equal
ours (code * descale in float32, codes decoded by libfp8rt) exactly; (4) its logits agree to 5e-2 relative
L2 with `fp8calib logits` under the same quantization. That loader decompresses the weights and quantizes
nothing in its forward, so ours then runs on the dequantized weights; how far our whole FP8 forward is
from it is printed beside. Exit 77 where torch, transformers or compressed-tensors are missing."""
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
    import compressed_tensors
    from safetensors import safe_open
    from safetensors.numpy import load_file
    from safetensors.torch import save_file
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)


def decode_table(build):
    """256 E4M3 codes as libfp8rt decodes them."""
    text = open(os.path.join(os.path.dirname(__file__), "../../core/dtype.h")).read()
    names = [l.split("(")[1].split(",")[0] for l in text.splitlines()
             if l.strip().startswith("X(") and '"' in l]
    lib = ctypes.CDLL(os.path.join(build, "libfp8rt.so"))
    lib.fp8_to_f32.restype = ctypes.c_float
    e4m3 = names.index("E4M3")
    return np.array([lib.fp8_to_f32(e4m3, ctypes.c_uint8(c)) for c in range(256)], np.float32)


def our_weights(folder, table):
    """{module: float32 weight} of every FP8 tensor, and the names of all tensors."""
    ours, names = {}, []
    for file in sorted(f for f in os.listdir(folder) if f.startswith("model") and
                       f.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "pt") as f:
            names += list(f.keys())
            for name in f.keys():
                t = f.get_tensor(name)
                if t.dtype == torch.float8_e4m3fn:
                    scale = f.get_tensor(name + "_scale").numpy().astype(np.float32)
                    ours[name[:-len(".weight")]] = table[t.view(torch.uint8).numpy()] * scale
    return ours, names


def relative(a, b):
    return float(np.linalg.norm((a - b).ravel().astype(np.float64)) /
                 np.linalg.norm(b.ravel().astype(np.float64)))


def load(folder, dtype):
    """Their model and the names it did not find or know."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True)
    missing = [k for k in info["missing_keys"] if "lm_head" not in k]
    unknown = {k.rsplit(".", 1)[1] for k in info["unexpected_keys"]}
    return model.eval(), missing, unknown


def run_ours(build, folder, ids_path, out):
    subprocess.run([os.path.join(build, "fp8calib"), "logits", folder, "--tokens", ids_path,
                    "-o", out, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return load_file(out)["logits"]


def write_dequantized(folder, out, ours):
    """The checkpoint with its FP8 weights as BF16 values: what a forward that quantizes nothing sees."""
    config = json.load(open(os.path.join(folder, "config.json")))
    del config["quantization_config"]
    json.dump(config, open(os.path.join(out, "config.json"), "w"))
    tensors = {}
    for file in (f for f in os.listdir(folder) if f.startswith("model") and
                 f.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "pt") as f:
            for name in f.keys():
                if name.endswith("_scale"):
                    continue
                module = name[:-len(".weight")]
                tensors[name] = torch.tensor(ours[module]).to(torch.bfloat16) \
                    if module in ours else f.get_tensor(name)
    save_file(tensors, os.path.join(out, "model.safetensors"), {"format": "pt"})


def compare_weights(model, ours, table):
    """Modules whose weight is not ours, bit for bit in float32."""
    different = []
    for name, module in model.named_modules():
        if name not in ours:
            continue
        weight = module.weight.detach().cpu()
        if weight.dtype == torch.float8_e4m3fn: # still compressed: before the first forward
            scale = module.weight_scale.detach().float().cpu().numpy()
            got = table[weight.view(torch.uint8).numpy()] * scale
        else:
            got = weight.float().numpy()
        if not np.array_equal(got, ours[name]):
            different.append(name)
    return different


def check(build, folder, table, ids):
    ours, names = our_weights(folder, table)
    print(f"{folder}: {len(names)} tensors open, {len(ours)} of them FP8 weights", flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        np.save(tmp + "/ids.npy", ids)
        full = run_ours(build, folder, tmp + "/ids.npy", tmp + "/full.safetensors")
        os.mkdir(tmp + "/dense")
        write_dequantized(folder, tmp + "/dense", ours)
        same = run_ours(build, tmp + "/dense", tmp + "/ids.npy", tmp + "/same.safetensors")

    exact, _, _ = load(folder, torch.float32) # in BF16 the loader rounds the scales
    different = compare_weights(exact, ours, table)
    with torch.no_grad(): # decompresses
        exact(torch.tensor(ids[:1, :4], dtype=torch.long))
    different += compare_weights(exact, ours, table)
    print(f"  dequantized weights, loaded in float32: {len(ours)} compared, {len(different)} differ")
    model, missing, unknown = load(folder, torch.bfloat16)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        theirs = model(torch.tensor(ids, device=model.device, dtype=torch.long)).logits
    theirs = theirs.float().cpu().numpy()
    quantizes = any(getattr(m, "quantization_enabled", False) for m in model.modules())
    error = relative(theirs, same)
    print(f"  missing {missing}, not known to it {sorted(unknown)}; its forward quantizes "
          f"activations: {quantizes}\n  logits against ours with the same quantization (weights "
          f"alone): {error:.4f}; against our whole FP8 forward: {relative(theirs, full):.4f}",
          flush=True)
    return bool(missing or different or quantizes or not error <= 5e-2)


def main():
    build, folders = sys.argv[1], sys.argv[2:]
    print("transformers", transformers.__version__, "compressed-tensors",
          compressed_tensors.__version__, "torch", torch.__version__)
    table = decode_table(build)
    text = open(os.path.join(os.path.dirname(__file__), "../../examples/evaluation.txt")).read()
    bad = 0
    for folder in folders:
        line = subprocess.run([os.path.join(build, "fp8calib"), "tokenize", folder], check=True,
                              input=json.dumps({"text": text}), text=True,
                              stdout=subprocess.PIPE).stdout
        ids = np.array(json.loads(line)["ids"][:512], np.int32).reshape(2, 256)
        bad += check(build, folder, table, ids)
    print("FAILED" if bad else "all equal")
    return 1 if bad else 0


sys.exit(main())
