#!/usr/bin/env python3
"""Perplexity of a checkpoint by an independent simulation in numpy: an oracle for the runtime.

FP8 checkpoints (compressed-tensors, E4M3): products of E4M3 values with the stored descales, inputs
static or one scale a token; Q by its descale where the metadata asks for FP8 attention, K and V by
theirs; P as it is, or with --quantize-p in E4M3 with a 2^8 offset. Others: as they are. Families:
llama, mistral, qwen2, qwen3, gemma, gpt2 (default RoPE, no sliding window). Needs numpy, ml_dtypes
and safetensors only.

    sim_fp8.py MODEL ids.npy [--window 256] [--max-windows 20] [--compute bf16|fp32]
               [--quantize-p] [--plain-attention] [--plain-inputs]
"""
import argparse
import glob
import json
import os

import ml_dtypes
import numpy as np
from safetensors import safe_open

F32, BF16, E4M3 = np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
E4M3_MAX = F32(448)
DTYPES = {"BF16": BF16, "F16": np.float16, "F32": F32, "F8_E4M3": E4M3}


def to_e4m3(x):
    """The E4M3 value nearest to x, saturated."""
    return np.clip(x, -E4M3_MAX, E4M3_MAX).astype(E4M3).astype(F32)


def qdq(x, descale):
    """x times the scale, 1 / descale: a quotient instead would round other ties."""
    return to_e4m3(x * (F32(1) / descale)) * descale


def read_tensors(folder):
    """Every tensor of the folder as float32 (codes: their values), and the first metadata."""
    tensors, metadata = {}, {}
    for path in sorted(glob.glob(os.path.join(folder, "model*.safetensors"))):
        with safe_open(path, "np") as f:  # the library's own checks
            metadata = metadata or f.metadata() or {}
        with open(path, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            data = f.read()
        for name, t in header.items():
            if name != "__metadata__":
                raw = data[slice(*t["data_offsets"])]
                tensors[name] = np.frombuffer(raw, DTYPES[t["dtype"]]).reshape(t["shape"])
    return tensors, metadata


class Model:
    def __init__(self, folder, args):
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        self.tensors, metadata = read_tensors(folder)
        self.args = args
        self.family = c["model_type"]
        self.gpt2 = self.family == "gpt2"
        self.hidden = c.get("hidden_size", c.get("n_embd"))
        self.layers = c.get("num_hidden_layers", c.get("n_layer"))
        self.heads = c.get("num_attention_heads", c.get("n_head"))
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c.get("rms_norm_eps", c.get("layer_norm_epsilon"))
        self.act = c.get("hidden_act", c.get("activation_function"))
        rope = c.get("rope_parameters") or {}
        self.theta = rope.get("rope_theta", c.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default" or c.get("rope_scaling"):
            raise SystemExit("sim_fp8: only default RoPE is simulated")
        self.dynamic = not any(name.endswith(".input_scale") for name in self.tensors)
        self.fp8_attention = metadata.get("fp8calib.attention", "none") != "none"
        self.prefix = "transformer." if "transformer.wte.weight" in self.tensors else ""

    def get(self, name):
        t = self.tensors.get(name)
        return None if t is None else t.astype(F32)

    def round(self, x):
        """What a tensor of the compute type keeps of x."""
        return x.astype(BF16).astype(F32) if self.args.compute == "bf16" else x.astype(F32)

    # ---- operations ------------------------------------------------------------------------------

    def linear(self, name, x):
        w, bias = self.get(name + ".weight"), self.get(name + ".bias")
        descale = self.get(name + ".weight_scale")
        if descale is not None and descale.size > 1:
            descale = descale.reshape(-1)
        x_descale = F32(1)
        if descale is None:
            descale = F32(1)
        elif self.dynamic and not self.args.plain_inputs:
            amax = np.abs(x).max(-1, keepdims=True)
            amax = np.where(amax > 0, amax, E4M3_MAX)
            x, x_descale = to_e4m3(x * (E4M3_MAX / amax)), amax / E4M3_MAX
        elif not self.args.plain_inputs:
            x_descale = self.get(name + ".input_scale")[0]
            x = to_e4m3(x * (F32(1) / x_descale))
        y = x @ (w if self.gpt2 else w.T) * (x_descale * descale)
        return self.round(y if bias is None else y + bias)

    def norm(self, name, x):
        w = self.get(name + ".weight")
        if self.gpt2:
            mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            return self.round((x - mean) / np.sqrt(var + self.eps) * w + self.get(name + ".bias"))
        y = x / np.sqrt((x * x).mean(-1, keepdims=True) + F32(self.eps))
        if self.family == "gemma":
            return self.round(y * (1 + w))
        return self.round(w * self.round(y))

    def activate(self, x):
        if self.act == "silu":
            return self.round(x / (1 + np.exp(-x)))
        if self.act in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
            return self.round(0.5 * x * (1 + np.tanh(F32(np.sqrt(2 / np.pi)) *
                                                     (x + F32(0.044715) * x * x * x))))
        raise SystemExit(f"sim_fp8: activation {self.act}")

    def rope(self, x):
        """x [windows, tokens, heads, dim], halves rotated."""
        half = self.dim // 2
        freq = F32(1) / F32(self.theta) ** (np.arange(half, dtype=F32) / F32(half))
        angle = np.arange(x.shape[1], dtype=F32)[:, None] * freq
        cos, sin = (self.round(np.tile(f(angle), 2))[:, None] for f in (np.cos, np.sin))
        turned = np.concatenate((-x[..., half:], x[..., :half]), -1)
        return self.round(x * cos + turned * sin)

    def attention(self, module, q, k, v):
        """[windows, tokens, heads, dim] each, causal."""
        descales = {c: self.get(f"{module}.{c}_scale") for c in "qkv"}
        fp8 = self.fp8_attention and not self.args.plain_attention
        if descales["k"] is not None and not self.args.plain_attention:
            k, v = qdq(k, descales["k"][0]), qdq(v, descales["v"][0])
        if fp8:
            q = qdq(q, descales["q"][0])
        group, tokens = self.heads // self.kv_heads, q.shape[1]
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        s = q @ k.transpose(0, 1, 3, 2) / F32(np.sqrt(self.dim))
        s = np.where(np.tril(np.ones((tokens, tokens), bool)), s, F32(-np.inf))
        p = np.exp(s - s.max(-1, keepdims=True))
        total = p.sum(-1, keepdims=True)
        if fp8 and self.args.quantize_p:
            p = to_e4m3(p * 256) / 256
        o = self.round(p @ v / total)
        return o.transpose(0, 2, 1, 3).reshape(o.shape[0], tokens, -1)

    # ---- wiring ----------------------------------------------------------------------------------

    def split(self, x, heads):
        return x.reshape(*x.shape[:2], heads, self.dim)

    def gpt2_layer(self, i, x):
        at = f"{self.prefix}h.{i}."
        qkv = self.linear(at + "attn.c_attn", self.norm(at + "ln_1", x))
        q, k, v = (self.split(part, self.heads) for part in np.split(qkv, 3, -1))
        x = self.round(x + self.linear(at + "attn.c_proj", self.attention(at + "attn", q, k, v)))
        inner = self.activate(self.linear(at + "mlp.c_fc", self.norm(at + "ln_2", x)))
        return self.round(x + self.linear(at + "mlp.c_proj", inner))

    def llama_layer(self, i, x):
        at = f"model.layers.{i}."
        n = self.norm(at + "input_layernorm", x)
        q = self.split(self.linear(at + "self_attn.q_proj", n), self.heads)
        k = self.split(self.linear(at + "self_attn.k_proj", n), self.kv_heads)
        v = self.split(self.linear(at + "self_attn.v_proj", n), self.kv_heads)
        if at + "self_attn.q_norm.weight" in self.tensors:
            q = self.norm(at + "self_attn.q_norm", q)
            k = self.norm(at + "self_attn.k_norm", k)
        o = self.attention(at + "self_attn", self.rope(q), self.rope(k), v)
        x = self.round(x + self.linear(at + "self_attn.o_proj", o))
        n = self.norm(at + "post_attention_layernorm", x)
        inner = self.activate(self.linear(at + "mlp.gate_proj", n))
        inner = self.round(inner * self.linear(at + "mlp.up_proj", n))
        return self.round(x + self.linear(at + "mlp.down_proj", inner))

    def logits(self, ids):
        """ids [windows, tokens] -> [windows, tokens, vocab]."""
        table = self.get(self.prefix + "wte.weight" if self.gpt2 else "model.embed_tokens.weight")
        x = table[ids]
        if self.gpt2:
            x = self.round(x + self.get(self.prefix + "wpe.weight")[:ids.shape[1]])
        elif self.family == "gemma":
            x = self.round(x * self.round(np.sqrt(F32(self.hidden))))
        layer = self.gpt2_layer if self.gpt2 else self.llama_layer
        for i in range(self.layers):
            x = layer(i, x)
        x = self.norm(self.prefix + "ln_f" if self.gpt2 else "model.norm", x)
        head = self.get("lm_head.weight")
        return self.round(x @ (table if head is None else head).T)


def evaluate(model, ids, window, max_windows):
    """Window i: ids[i*T .. i*T+T], the first T of them are the input."""
    count = -(-(len(ids) - 1) // window)
    count = min(count, max_windows) if max_windows else count
    nll, tokens, at_once = 0.0, 0, 8
    for begin in range(0, count, at_once):
        pieces = [ids[i * window:i * window + window + 1]
                  for i in range(begin, min(begin + at_once, count))]
        for length in sorted({len(p) for p in pieces}, reverse=True):
            batch = np.array([p for p in pieces if len(p) == length])
            z = model.logits(batch[:, :-1]).astype(np.float64)
            z -= z.max(-1, keepdims=True)
            right = np.take_along_axis(z, batch[:, 1:, None], -1)[..., 0]
            nll += (np.log(np.exp(z).sum(-1)) - right).sum()
            tokens += right.size
    return float(np.exp(nll / tokens)), tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("ids", help="1-D .npy of token ids")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=20, help="0: all")
    parser.add_argument("--compute", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--quantize-p", action="store_true", help="P in E4M3 before P V")
    parser.add_argument("--plain-attention", action="store_true", help="Q, K, V as they are")
    parser.add_argument("--plain-inputs", action="store_true", help="inputs are not quantized")
    args = parser.parse_args()
    ids = np.load(args.ids).reshape(-1).astype(np.int64)
    perplexity, tokens = evaluate(Model(args.model, args), ids, args.window, args.max_windows)
    print(json.dumps({"perplexity": perplexity, "tokens": tokens, "window": args.window}))


if __name__ == "__main__":
    main()
