"""Opens FP8 checkpoints that fp8calib wrote as others do, and holds them against our own runtime.

    python3 tests/interop/transformers_load.py BUILD_DIR MODEL-FP8 [MODEL-FP8 ...]

Per checkpoint: (1) every tensor opens in the `safetensors` package; (2) transformers with
compressed-tensors loads it without a missing or unexpected weight; (3) its dequantized weights equal
ours (code * descale in float32, codes decoded by libfp8rt) exactly; (4) its logits agree with
`fp8calib logits` to 5e-2 relative L2; printed beside are its logits with activation quantization as the
loader applies it and without. Exit 77 where torch, transformers or compressed-tensors are missing."""
import ctypes
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


def check(build, folder, table):
    ours, names = our_weights(folder, table)
    print(f"{folder}: {len(names)} tensors, {len(ours)} FP8 weights", flush=True)
    bad = 0
    ids = np.random.default_rng(7).integers(3, 2000, (2, 64)).astype(np.int32)
    with tempfile.TemporaryDirectory() as tmp:
        np.save(tmp + "/ids.npy", ids)
        subprocess.run([os.path.join(build, "fp8calib"), "logits", folder, "--tokens",
                        tmp + "/ids.npy", "-o", tmp + "/logits.safetensors", "--quiet"], check=True)
        our_logits = load_file(tmp + "/logits.safetensors")["logits"]

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    missing = [k for k in info["missing_keys"] if "lm_head" not in k]
    print("  missing:", missing, " unexpected:", sorted(info["unexpected_keys"])[:4])
    bad += bool(missing)
    with torch.no_grad():
        theirs = model(torch.tensor(ids, device=model.device, dtype=torch.long)).logits
    theirs = theirs.float().cpu().numpy()
    error = relative(theirs, our_logits)
    print(f"  logits, loader as it comes against our FP8 forward: {error:.4f}")
    bad += not error <= 5e-2

    compared = different = 0
    kinds = set()
    for name, module in model.named_modules():
        if name not in ours:
            continue
        weight = module.weight.detach()
        kinds.add(f"{type(module).__name__} {weight.dtype}")
        if weight.dtype == torch.float8_e4m3fn:
            got = table[weight.view(torch.uint8).cpu().numpy()] * \
                module.weight_scale.detach().float().cpu().numpy()
            want = ours[name]
        else:
            got = weight.float().cpu().numpy()
            want = torch.tensor(ours[name]).to(weight.dtype).float().numpy()
        compared += 1
        different += not np.array_equal(got, want)
    print(f"  dequantized weights: {compared} compared, {different} differ; modules: {sorted(kinds)}")
    bad += different or compared != len(ours)
    scheme = next((m.quantization_scheme for m in model.modules()
                   if getattr(m, "quantization_scheme", None)), None)
    print("  forward quantization on:", scheme is not None and
          any(getattr(m, "quantization_enabled", False) for m in model.modules()))
    return bad


def main():
    build, folders = sys.argv[1], sys.argv[2:]
    print("transformers", transformers.__version__, "compressed-tensors",
          compressed_tensors.__version__, "torch", torch.__version__)
    table = decode_table(build)
    bad = sum(bool(check(build, f, table)) for f in folders)
    print("FAILED" if bad else "all equal")
    return 1 if bad else 0


sys.exit(main())
