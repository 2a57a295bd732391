"""Each dialect as the safetensors package and a JSON parser read it: names, dtypes, shapes, and the
keys of quantization_config. Skipped (77) where Python has no safetensors package."""
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as missing:
    print("skipped: no package", missing.name)
    sys.exit(77)

FP8CALIB = os.environ["FP8CALIB"]
MODEL = os.path.join(os.environ["FP8_SOURCE_DIR"], "examples", "sample-model")
UP = "model.layers.1.mlp.up_proj."
ATTENTION = "model.layers.1.self_attn."
CT = {"config_groups", "format", "global_compression_ratio", "ignore", "kv_cache_scheme",
      "quant_method", "quantization_status"}
MODELOPT = {"config_groups", "ignore", "quant_algo", "producer", "quant_method"}
# options, static?, keys of quantization_config, {tensor: shape}
CASES = {
    "FP8": ([], True, CT, {UP + "weight_scale": [1], UP + "input_scale": [1],
                           ATTENTION + "k_scale": [1]}),
    "FP8_DYNAMIC": ([], False, CT, {UP + "weight_scale": [384, 1]}),
    "FP8_BLOCK": (["--scheme", "block"], False, CT, {UP + "weight_scale": [3, 1]}),
    "MXFP8": (["--scheme", "mxfp8"], False, CT, {UP + "weight_scale": [384, 4]}),
    "BF16 scales": (["--scales", "bf16"], False, CT, {UP + "weight_scale": [384, 1]}),
    "KV alone": (["--scheme", "none", "--fp8-attention", "none"], True, CT,
                 {ATTENTION + "v_scale": [1]}),
    "fp8 static": (["--dialect", "fp8"], True,
                   {"quant_method", "activation_scheme", "ignored_layers", "kv_cache_scheme"},
                   {UP + "weight_scale": [], UP + "input_scale": [], ATTENTION + "v_scale": []}),
    "fp8 dynamic": (["--dialect", "fp8"], False,
                    {"quant_method", "activation_scheme", "ignored_layers"},
                    {UP + "weight_scale": []}),
    "deepseek": (["--dialect", "deepseek"], False,
                 {"activation_scheme", "fmt", "quant_method", "weight_block_size"},
                 {UP + "weight_scale_inv": [3, 1]}),
    "ue8m0": (["--dialect", "deepseek", "--scales", "ue8m0"], False,
              {"activation_scheme", "fmt", "quant_method", "weight_block_size", "scale_fmt"},
              {UP + "weight_scale_inv": [3, 1]}),
    "modelopt static": (["--dialect", "modelopt"], True, MODELOPT | {"kv_cache_scheme"},
                        {UP + "weight_scale": [], UP + "input_scale": [],
                         ATTENTION + "k_proj.k_scale": [], ATTENTION + "v_proj.v_scale": []}),
    "modelopt channel": (["--dialect", "modelopt"], False, MODELOPT, {UP + "weight_scale": [384]}),
}
failures = 0


def check(condition, what):
    global failures
    if not condition:
        failures += 1
        print("failed:", what)


def run(*arguments):
    subprocess.run([FP8CALIB, *arguments, "--device", "cpu", "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)


def judge(name, folder, keys, shapes):
    config = json.load(open(os.path.join(folder, "config.json")))["quantization_config"]
    check(set(config) == keys, f"{name}: keys {sorted(config)}")
    with safe_open(os.path.join(folder, "model.safetensors"), "np") as f:
        names = set(f.keys())
        kind = f.get_slice(UP + "weight").get_dtype()
        check(kind == ("BF16" if name == "KV alone" else "F8_E4M3"), f"{name}: weight {kind}")
        for tensor, shape in shapes.items():
            check(tensor in names, f"{name}: no {tensor}")
            if tensor not in names:
                continue
            if name == "BF16 scales":  # numpy has none
                check(f.get_slice(tensor).get_dtype() == "BF16", f"{name}: {tensor}")
                continue
            values = f.get_tensor(tensor)
            check(list(values.shape) == shape, f"{name}: {tensor} {values.shape}")
            dtype = np.uint8 if name == "MXFP8" else np.float32
            check(values.dtype == dtype and (values > 0).all(), f"{name}: {tensor} values")
            if name == "ue8m0":
                check((np.frexp(values)[0] == 0.5).all(), "powers of two")
    side = os.path.join(folder, "hf_quant_config.json")
    check(os.path.exists(side) == name.startswith("modelopt"), f"{name}: hf_quant_config.json")
    if os.path.exists(side):
        whole = json.load(open(side))
        check(set(whole) == {"producer", "quantization"}, f"{name}: {sorted(whole)}")
        check(set(whole["quantization"]) ==
              {"quant_algo", "kv_cache_quant_algo", "exclude_modules"}, f"{name}: quantization")


with tempfile.TemporaryDirectory() as work:
    run("run", MODEL, "-o", work + "/run", "--samples", "4", "--no-eval")
    for name, (options, is_static, keys, shapes) in CASES.items():
        out = os.path.join(work, name.replace(" ", "-"))
        record = ["--record", work + "/run/calibration.safetensors"] if is_static else []
        run("convert", MODEL, "-o", out, *options, *record)
        judge(name, out, keys, shapes)
sys.exit(1 if failures else 0)
