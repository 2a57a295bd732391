"""A random FP8 checkpoint of a known model's sizes, for timing: E4M3 weights of deviation 0.02 with
one descale each, static input scales, FP8 keys and values.

    python3 bench/random_fp8.py OUT [--preset gemma-7b|llama-8b|tiny] [--layers N]

gemma-7b: 28 layers, hidden 3072, 16 heads of 256, ffn 24576, vocab 256000, tied head: 9.3 GB;
llama-8b: 32 layers, hidden 4096, 32/8 heads of 128, ffn 14336, vocab 128256: 9.1 GB.
Needs numpy alone; codes are drawn from a table of normal values, so that nothing is slow."""
import argparse
import json
import math
import os

import numpy as np

PRESETS = {
    "gemma-7b": dict(layers=28, hidden=3072, heads=16, kv=16, dim=256, ffn=24576, vocab=256000,
                     family="gemma"),
    "llama-8b": dict(layers=32, hidden=4096, heads=32, kv=8, dim=128, ffn=14336, vocab=128256,
                     family="llama"),
    "tiny": dict(layers=2, hidden=256, heads=4, kv=2, dim=64, ffn=512, vocab=1000, family="llama"),
}
DEVIATION, LARGEST = 0.02, 5.0  # of a weight; deviations that 448 stands for
GROUP = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def config_of(p):
    gemma = p["family"] == "gemma"
    config = {
        "architectures": ["GemmaForCausalLM" if gemma else "LlamaForCausalLM"],
        "model_type": p["family"], "dtype": "bfloat16", "attention_bias": False,
        "bos_token_id": 0, "eos_token_id": 1, "head_dim": p["dim"], "hidden_size": p["hidden"],
        "hidden_act": "gelu_pytorch_tanh" if gemma else "silu", "intermediate_size": p["ffn"],
        "max_position_embeddings": 8192, "num_attention_heads": p["heads"],
        "num_hidden_layers": p["layers"], "num_key_value_heads": p["kv"], "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": gemma, "vocab_size": p["vocab"],
    }
    config["quantization_config"] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP,
                                      "input_activations": GROUP, "output_activations": None}},
        "format": "float-quantized", "ignore": ["lm_head"], "kv_cache_scheme": GROUP,
        "quant_method": "compressed-tensors", "quantization_status": "compressed"}
    return config


def linears_of(p):
    inner, kv = p["heads"] * p["dim"], p["kv"] * p["dim"]
    return {"self_attn.q_proj": (inner, p["hidden"]), "self_attn.k_proj": (kv, p["hidden"]),
            "self_attn.v_proj": (kv, p["hidden"]), "self_attn.o_proj": (p["hidden"], inner),
            "mlp.gate_proj": (p["ffn"], p["hidden"]), "mlp.up_proj": (p["ffn"], p["hidden"]),
            "mlp.down_proj": (p["hidden"], p["ffn"])}


def tensors_of(p):
    """(name, dtype, shape, value of a lone scale)"""
    table = (p["vocab"], p["hidden"])
    yield "model.embed_tokens.weight", "BF16", table, None
    if p["family"] != "gemma":
        yield "lm_head.weight", "BF16", table, None
    for i in range(p["layers"]):
        layer = f"model.layers.{i}."
        for name, shape in linears_of(p).items():
            yield f"{layer}{name}.weight", "F8_E4M3", shape, None
            yield f"{layer}{name}.weight_scale", "F32", (1,), DEVIATION * LARGEST / 448
            yield f"{layer}{name}.input_scale", "F32", (1,), 8 / 448
        for name in "qkv":
            yield f"{layer}self_attn.{name}_scale", "F32", (1,), 8 / 448
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", "BF16", (p["hidden"],), None
    yield "model.norm.weight", "BF16", (p["hidden"],), None


def e4m3_codes(x):
    """Nearest codes of x, |x| <= 448; ties go anywhere: these are random numbers."""
    values = np.array([(c >> 3 and (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7)) or (c & 7) / 512
                       for c in range(127)])
    middle = (values[1:] + values[:-1]) / 2
    return (np.searchsorted(middle, np.abs(x)) | np.where(x < 0, 0x80, 0)).astype(np.uint8)


def bf16(x):
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def draw(rng, dtype, shape, value, tables):
    """Pieces of a tensor: its table, from a random place on, again and again."""
    if dtype == "F32":
        return [np.array([value], np.float32)]
    if len(shape) == 1:
        return [bf16(np.ones(shape))]
    table, left = tables[dtype], math.prod(shape)
    pieces = [table[rng.integers(table.size):]]
    while sum(x.size for x in pieces) < left:
        pieces.append(table)
    return [x[:max(0, left - sum(y.size for y in pieces[:i]))] for i, x in enumerate(pieces)]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--preset", choices=PRESETS, default="gemma-7b")
    p.add_argument("--layers", type=int)
    args = p.parse_args()
    sizes = dict(PRESETS[args.preset])
    sizes["layers"] = args.layers or sizes["layers"]
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "config.json"), "w") as f:
        json.dump(config_of(sizes), f, indent=2)
    size = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
    header, at = {"__metadata__": {"format": "pt", "fp8calib.attention": "dpa",
                                   "fp8calib.format": "e4m3"}}, 0
    for name, dtype, shape, _ in tensors_of(sizes):
        end = at + size[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(4000037)  # a prime: rows of a matrix do not repeat
    tables = {"F8_E4M3": e4m3_codes(np.clip(normal * (448 / LARGEST), -448, 448)),
              "BF16": bf16(normal * DEVIATION)}
    with open(os.path.join(args.out, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, dtype, shape, value in tensors_of(sizes):
            for piece in draw(rng, dtype, shape, value, tables):
                piece.tofile(f)
    print(f"{args.out}: {at / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
