"""Codes, scales and JSON as compressed-tensors itself makes them, bit for bit.

    python3 tests/interop/compressed_tensors_bytes.py BUILD_DIR MODEL [MODEL ...]

Every Linear of a BF16 model through compressed-tensors (calculate_qparams, then its compressor)
with its presets FP8 (weights), FP8_DYNAMIC, FP8_BLOCK and MXFP8, against `fp8calib convert --scales
bf16` (MXFP8: as it is): weight and weight_scale must have the same bytes, and read back by theirs
they are code * scale. Beside it what our own F32 scales do: SQNR of all weights of the model, dB,
which may not be lower than theirs by more than 0.005.
quantization_config: what we write is accepted by their model of it, and every argument that says
how numbers are to be read equals that of their preset.

Exit 77 where torch or compressed-tensors are missing."""
import json
import math
import os
import subprocess
import sys
import tempfile

try:
    import torch
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors import safe_open
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

PRESETS = {  # theirs: our options, whose scales are not theirs without --scales bf16
    "FP8": ["--scheme", "tensor-dynamic"],
    "FP8_DYNAMIC": ["--scheme", "dynamic"],
    "FP8_BLOCK": ["--scheme", "block"],
    "MXFP8": ["--scheme", "mxfp8"],
}
SAME = ("num_bits", "type", "symmetric", "strategy", "dynamic", "group_size", "block_structure",
        "scale_dtype")
failures = 0


def check(condition, what):
    global failures
    if not condition:
        failures += 1
        print("failed:", what)


def convert(build, model, out, options):
    subprocess.run([f"{build}/fp8calib", "convert", model, "-o", out, "--device", "cpu", "--quiet",
                    "--force", *options], check=True, stdout=subprocess.DEVNULL)


def tensors(folder):
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors") and name.startswith("model"):
            with safe_open(os.path.join(folder, name), "pt") as f:
                found.update((key, f.get_tensor(key)) for key in f.keys())
    return found


def ranges(w, args):
    """min and max of what shares a scale, in the shape of the scales."""
    if args.strategy == "tensor":
        return w.amin().reshape(1), w.amax().reshape(1)
    if args.strategy == "channel":
        return w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    if args.strategy == "group":
        groups = w.unflatten(-1, (-1, args.group_size))
        return groups.amin(-1), groups.amax(-1)
    high, wide = args.block_structure
    padded = torch.nn.functional.pad(w, (0, -w.shape[1] % wide, 0, -w.shape[0] % high))
    blocks = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def compressor_of(mx):
    return MXFP8QuantizationCompressor if mx else NaiveQuantizationCompressor


def theirs(w, scheme, mx):
    scale, _ = calculate_qparams(*ranges(w, scheme.weights), scheme.weights)
    made = compressor_of(mx).compress({"weight": w, "weight_scale": scale}, scheme)
    return made["weight"], made["weight_scale"]


def values(codes, scale, mx):
    """In double; scales spread over what shares them."""
    s = torch.exp2(scale.double() - 127) if mx else scale.double()
    if s.numel() == 1:
        return codes.double() * s.reshape(())
    if mx:
        s = s.repeat_interleave(32, 1)
    elif s.shape[1] > 1 or s.shape[0] != codes.shape[0]:
        s = s.repeat_interleave(128, 0)[:codes.shape[0]].repeat_interleave(128, 1)
        s = s[:, :codes.shape[1]]
    return codes.double() * s


def same_bytes(a, b):
    return a.dtype == b.dtype and a.numel() == b.numel() and \
        torch.equal(a.contiguous().view(torch.uint8).flatten(),
                    b.contiguous().view(torch.uint8).flatten())


def judge_weights(name, source, ours, default, scheme):
    mx, signal, noise, count = name == "MXFP8", 0.0, [0.0, 0.0], 0
    for key, codes in ours.items():
        if codes.dtype != torch.float8_e4m3fn:
            continue
        w, count = source[key], count + 1
        want, scale = theirs(w, scheme, mx)
        check(same_bytes(codes, want), f"{name}: {key}: "
              f"{(codes.view(torch.uint8) != want.view(torch.uint8)).sum()} codes")
        check(same_bytes(ours[key + "_scale"], scale), f"{name}: {key}_scale")
        read = compressor_of(mx).decompress({"weight": codes, "weight_scale": ours[key + "_scale"]},
                                            scheme)["weight"]
        check(torch.equal(read.double(), values(codes, scale, mx).to(read.dtype).double()),
              f"{name}: {key}: read back")
        signal += w.double().square().sum().item()
        for i, (c, s) in enumerate(((want, scale), (default[key], default[key + "_scale"]))):
            noise[i] += (w.double() - values(c, s, mx)).square().sum().item()
    check(count > 0, f"{name}: no weights")
    db = [10 * math.log10(signal / n) for n in noise]
    check(db[1] >= db[0] - 0.005, f"{name}: SQNR")
    print(f"{name}: {count} weights, codes and scales compared; SQNR {db[0]:.3f} dB, "
          f"with our scales {db[1]:.3f} dB", flush=True)


def judge_json(name, folder, scheme):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        written = json.load(f)["quantization_config"]
    read = QuantizationConfig.model_validate(written)
    mine = read.config_groups["group_0"]
    check(read.ignore == ["lm_head"] and read.quantization_status == "compressed", f"{name}: JSON")
    for part in ("weights", "input_activations"):
        a, b = getattr(mine, part), getattr(scheme, part)
        if name == "FP8" and part == "input_activations":
            continue  # converted without calibration: inputs are dynamic
        for key in SAME:
            check(getattr(a, key) == getattr(b, key), f"{name}: {part}: {key}: {getattr(a, key)}, "
                  f"theirs {getattr(b, key)}")
    wanted = QuantizationConfig(config_groups={"group_0": scheme}, format=written["format"],
                                ignore=["lm_head"], quantization_status="compressed").to_dict()
    known = set(wanted["config_groups"]["group_0"]["weights"])
    arguments = set(written["config_groups"]["group_0"]["weights"])
    check(set(written) <= set(wanted), f"{name}: keys {set(written) - set(wanted)}")
    left_out = known - arguments
    print(f"{name}: keys of theirs that we leave out: {sorted(set(wanted) - set(written))}, of a "
          f"kind of tensor {sorted(left_out)}")


def main():
    build, models = sys.argv[1], sys.argv[2:]
    for model in models:
        print(model)
        source = tensors(model)
        with tempfile.TemporaryDirectory() as work:
            for name, options in PRESETS.items():
                scheme = preset_name_to_scheme(name, ["Linear"])
                bits = [] if name == "MXFP8" else ["--scales", "bf16"]
                convert(build, model, work + "/same", options + bits)
                convert(build, model, work + "/own", options)
                judge_weights(name, source, tensors(work + "/same"), tensors(work + "/own"), scheme)
                judge_json(name, work + "/own", scheme)
    sys.exit(1 if failures else 0)


main()
