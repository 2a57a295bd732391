"""Checkpoints in DeepSeek's spelling as transformers' own fine-grained FP8 loader opens them.

    python3 tests/interop/finegrained_fp8_load.py BUILD_DIR MODEL [MODEL ...]

A BF16 model through `fp8calib convert --dialect deepseek`, and once more with `--scales ue8m0`, is
loaded by transformers with FineGrainedFP8Config(dequantize=True): no weight may be missing or left
over, every Linear's weight must be code * weight_scale_inv to BF16's rounding, and logits must be
those of the checkpoint that `fp8calib convert --to bf16` makes of it, loaded as any other model.
quantization_config is compared key by key with what FineGrainedFP8Config writes. Exit 77 where
torch or transformers are missing."""
import json
import os
import subprocess
import sys
import tempfile

try:
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

failures = 0


def check(condition, what):
    global failures
    if not condition:
        failures += 1
        print("failed:", what)


def convert(build, model, out, *options):
    subprocess.run([f"{build}/fp8calib", "convert", model, "-o", out, "--device", "cpu", "--quiet",
                    *options], check=True, stdout=subprocess.DEVNULL)


def load(folder, **how):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16,
                                                       output_loading_info=True, **how)
    check(not info["missing_keys"] and not info["unexpected_keys"], f"{folder}: {info}")
    return model.eval()


def judge(name, build, model, work, options):
    fp8, back = f"{work}/{name}", f"{work}/{name}-bf16"
    convert(build, model, fp8, "--dialect", "deepseek", *options)
    convert(build, fp8, back, "--to", "bf16")
    theirs = load(fp8, quantization_config=FineGrainedFP8Config(dequantize=True))
    ours = load(back)
    mine, other, worst = dict(ours.named_parameters()), dict(theirs.named_parameters()), 0.0
    check(set(mine) == set(other), f"{name}: parameters differ")
    for key, w in mine.items():
        a, b = w.detach().float(), other[key].detach().float()
        worst = max(worst, ((a - b).abs() / a.abs().clamp(min=1e-30)).max().item())
    check(worst <= 2 ** -8, f"{name}: weights differ by {worst:.3g}")
    ids = torch.arange(64).reshape(2, 32) * 37 % ours.config.vocab_size
    with torch.inference_mode():
        a, b = ours.float()(ids).logits, theirs.float()(ids).logits
    off = ((a - b).norm() / a.norm()).item()
    check(off <= 1e-2, f"{name}: logits {off:.3g} off")
    with open(os.path.join(fp8, "config.json"), encoding="utf-8") as f:
        written = json.load(f)["quantization_config"]
    wanted = FineGrainedFP8Config(weight_block_size=(128, 128)).to_dict()
    for key in ("quant_method", "activation_scheme", "weight_block_size"):
        a, b = written[key], wanted[key]
        same = list(a) == list(b) if isinstance(a, list) else str(a) == str(getattr(b, "value", b))
        check(same, f"{name}: {key}: {a}, theirs {b}")
    print(f"{name}: {len(mine)} parameters, at most {worst:.3g} apart, logits {off:.3g}; "
          f"keys of theirs {sorted(wanted)}, ours {sorted(written)}", flush=True)


def main():
    build, models = sys.argv[1], sys.argv[2:]
    for model in models:
        with tempfile.TemporaryDirectory() as work:
            name = os.path.basename(model.rstrip("/"))
            judge(name, build, model, work, [])
            judge(name + "-ue8m0", build, model, work, ["--scales", "ue8m0"])
    sys.exit(1 if failures else 0)


main()
