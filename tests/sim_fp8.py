#!/usr/bin/env python3
"""Perplexity of checkpoints by an independent simulation: an oracle for the runtime. In torch where
it is installed, on the GPU where there is one, else in numpy.

Plain formulas, none of our shortcuts: codes = e4m3(x / descale), values = codes * descale. A norm,
activation or RoPE whose result is quantized is not rounded to BF16 before; elsewhere they round as
transformers does, RoPE three times. FP8 checkpoints (compressed-tensors, E4M3): inputs static
or one descale a token, K and V by theirs, Q by its descale where the metadata asks for FP8
attention; P as it is, or with --quantize-p in E4M3 with a 2^8 offset. Others: as they are. Families
llama, mistral, qwen2, qwen3, gemma, gpt2 (default RoPE, no sliding window). Window i is
ids[i*T .. i*T+T], the first T of them the input, as `fp8calib eval` cuts them. IDS: 1-D .npy, or
.json as `fp8calib tokenize` prints it. One line of JSON a model. Needs numpy and safetensors, and
torch or ml_dtypes.

With --against the logits of `fp8calib logits` instead, IDS [sequences, tokens]: the share of tokens
whose logits are the same to 1e-5, and the relative L2 of all. One code that rounds the other way by
the last bit of a sum spoils the tokens behind it, so in float32 and short sequences the share is
large where the formulas are the same, and tells any difference between them.

    sim_fp8.py IDS MODEL [MODEL ...]
               [--window 256] [--max-windows 20] [--compute bf16|fp32] [--with auto|numpy|torch]
               [--quantize-p] [--plain-attention] [--plain-inputs] [--against LOGITS.safetensors]
"""
import argparse
import glob
import json
import os

import numpy as np
from safetensors import safe_open

E4M3_MAX = 448.0


class Numpy:
    """What numpy and torch spell differently; `lib` has the rest under one name."""
    lib = np
    at_once = 8  # windows of a forward

    def __init__(self):
        import ml_dtypes  # numpy has neither type
        self.bfloat16, self.float8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
        self.dtypes = {"BF16": self.bfloat16, "F16": np.float16, "F32": np.float32,
                       "F8_E4M3": self.float8}

    def read(self, path):
        with open(path, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            data = f.read()
        return {name: np.frombuffer(data[slice(*t["data_offsets"])], self.dtypes[t["dtype"]])
                .reshape(t["shape"]).astype(np.float32)
                for name, t in header.items() if name != "__metadata__"}

    def ids(self, array):
        return array.astype(np.int64)

    def bf16(self, x):
        return x.astype(self.bfloat16).astype(np.float32)

    def e4m3(self, x):
        """The E4M3 value nearest to x, saturated."""
        return np.clip(x, -E4M3_MAX, E4M3_MAX).astype(self.float8).astype(np.float32)

    def amax(self, x):
        return x.max(-1, keepdims=True)

    def causal(self, tokens):
        return np.tril(np.ones((tokens, tokens), bool))

    def arange(self, n):
        return np.arange(n, dtype=np.float32)

    def host(self, x):
        return x

    def loss(self, z, targets):
        """Sum of -log softmax(z)[target], in double."""
        z = z.astype(np.float64)
        z -= z.max(-1, keepdims=True)
        right = np.take_along_axis(z, targets[..., None], -1)[..., 0]
        return float((np.log(np.exp(z).sum(-1)) - right).sum())


class Torch:
    at_once = 32

    def __init__(self):
        import torch
        self.lib = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_grad_enabled(False)
        torch.backends.cuda.matmul.allow_tf32 = False

    def read(self, path):
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name).to(self.device).float() for name in f.keys()}

    def ids(self, array):
        return self.lib.tensor(array.astype(np.int64), device=self.device)

    def bf16(self, x):
        return x.bfloat16().float()

    def e4m3(self, x):
        return x.clamp(-E4M3_MAX, E4M3_MAX).to(self.lib.float8_e4m3fn).float()

    def amax(self, x):
        return x.amax(-1, keepdim=True)

    def causal(self, tokens):
        return self.lib.ones(tokens, tokens, dtype=self.lib.bool, device=self.device).tril()

    def arange(self, n):
        return self.lib.arange(n, dtype=self.lib.float32, device=self.device)

    def host(self, x):
        return x.cpu().numpy()

    def loss(self, z, targets):
        p = self.lib.log_softmax(z.double(), -1)
        return -float(p.gather(-1, targets[..., None]).sum())


def read_tensors(folder, backend):
    """Every tensor of the folder in float32 (codes: their values), and the first metadata."""
    tensors, metadata = {}, {}
    for path in sorted(glob.glob(os.path.join(folder, "model*.safetensors"))):
        with safe_open(path, "np") as f:  # the library's own checks
            metadata = metadata or f.metadata() or {}
        tensors.update(backend.read(path))
    return tensors, metadata


class Model:
    def __init__(self, folder, args, backend):
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        self.tensors, metadata = read_tensors(folder, backend)
        self.b, self.lib = backend, backend.lib
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
        self.fp8_inputs = not args.plain_inputs and any(name.endswith(".weight_scale")
                                                        for name in self.tensors)
        self.fp8_kv = not args.plain_attention and any(name.endswith(".k_scale")
                                                       for name in self.tensors)
        self.prefix = "transformer." if "transformer.wte.weight" in self.tensors else ""

    def get(self, name):
        return self.tensors.get(name)

    def round(self, x, quantized=False):
        """What a tensor of the compute type keeps of x; all of it on the way to a quantizer."""
        return self.b.bf16(x) if self.args.compute == "bf16" and not quantized else x

    # ---- operations ------------------------------------------------------------------------------

    def linear(self, name, x):
        w, bias = self.get(name + ".weight"), self.get(name + ".bias")
        descale = self.get(name + ".weight_scale")
        if descale is not None:
            w = w * descale
            if self.dynamic and not self.args.plain_inputs:
                amax = self.b.amax(abs(x))
                x_descale = self.lib.where(amax > 0, amax, E4M3_MAX) / E4M3_MAX
                x = self.b.e4m3(x / x_descale) * x_descale
            elif not self.args.plain_inputs:
                x_descale = self.get(name + ".input_scale")
                x = self.b.e4m3(x / x_descale) * x_descale
        y = x @ (w if self.gpt2 else w.T)
        return self.round(y if bias is None else y + bias)

    def norm(self, name, x, quantized=False):
        w = self.get(name + ".weight")
        if self.gpt2:
            mean = x.mean(-1, keepdims=True)
            var = ((x - mean) ** 2).mean(-1, keepdims=True)
            return self.round((x - mean) / self.lib.sqrt(var + self.eps) * w +
                              self.get(name + ".bias"), quantized)
        y = x / self.lib.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        if self.family == "gemma":
            return self.round(y * (1 + w), quantized)
        return self.round(w * self.round(y, quantized), quantized)

    def activate(self, x):
        if self.act == "silu":
            return self.round(x / (1 + self.lib.exp(-x)), self.fp8_inputs)
        if self.act in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
            return self.round(0.5 * x * (1 + self.lib.tanh((2 / np.pi) ** 0.5 *
                                                           (x + 0.044715 * x * x * x))),
                              self.fp8_inputs)
        raise SystemExit(f"sim_fp8: activation {self.act}")

    def rope(self, x):
        """x [windows, tokens, heads, dim], halves rotated; each product and the sum are rounded."""
        half = self.dim // 2
        freq = self.theta ** (-self.b.arange(half) / half)
        angle = self.b.arange(x.shape[1])[:, None] * freq
        cos, sin = (self.round(self.lib.concatenate((f(angle), f(angle)), -1))[:, None]
                    for f in (self.lib.cos, self.lib.sin))
        fp8 = self.fp8_kv
        turned = self.lib.concatenate((-x[..., half:], x[..., :half]), -1)
        return self.round(self.round(x * cos, fp8) + self.round(turned * sin, fp8), fp8)

    def attention(self, module, q, k, v):
        """[windows, tokens, heads, dim] each, causal."""
        d = {c: self.get(f"{module}.{c}_scale") for c in "qkv"}
        fp8 = self.fp8_attention and not self.args.plain_attention
        if d["k"] is not None and not self.args.plain_attention:
            k = self.b.e4m3(k / d["k"]) * d["k"]
            v = self.b.e4m3(v / d["v"]) * d["v"]
        if fp8:
            q = self.b.e4m3(q / d["q"]) * d["q"]
        windows, tokens = q.shape[:2]
        q = q.reshape(windows, tokens, self.kv_heads, -1, self.dim).swapaxes(1, 2).swapaxes(2, 3)
        k, v = (x.swapaxes(1, 2)[:, :, None] for x in (k, v))  # one head of K, V for a group of Q
        s = q @ k.swapaxes(-1, -2) / self.dim ** 0.5
        s = self.lib.where(self.b.causal(tokens), s, -np.inf)
        p = self.lib.exp(s - self.b.amax(s))
        total = p.sum(-1, keepdims=True)
        if fp8 and self.args.quantize_p:
            p = self.b.e4m3(p * 256) / 256
        o = self.round(p @ v / total)
        return o.swapaxes(2, 3).swapaxes(1, 2).reshape(windows, tokens, -1)

    # ---- wiring ----------------------------------------------------------------------------------

    def split(self, x, heads):
        return x.reshape(*x.shape[:2], heads, self.dim)

    def gpt2_layer(self, i, x):
        at = f"{self.prefix}h.{i}."
        qkv = self.linear(at + "attn.c_attn", self.norm(at + "ln_1", x, self.fp8_inputs))
        q, k, v = (self.split(qkv[..., j * self.hidden:(j + 1) * self.hidden], self.heads)
                   for j in range(3))
        x = self.round(x + self.linear(at + "attn.c_proj", self.attention(at + "attn", q, k, v)))
        n = self.norm(at + "ln_2", x, self.fp8_inputs)
        inner = self.activate(self.linear(at + "mlp.c_fc", n))
        return self.round(x + self.linear(at + "mlp.c_proj", inner))

    def llama_layer(self, i, x):
        at = f"model.layers.{i}."
        n = self.norm(at + "input_layernorm", x, self.fp8_inputs)
        q = self.split(self.linear(at + "self_attn.q_proj", n), self.heads)
        k = self.split(self.linear(at + "self_attn.k_proj", n), self.kv_heads)
        v = self.split(self.linear(at + "self_attn.v_proj", n), self.kv_heads)
        if at + "self_attn.q_norm.weight" in self.tensors:
            q = self.norm(at + "self_attn.q_norm", q, self.fp8_kv)
            k = self.norm(at + "self_attn.k_norm", k, self.fp8_kv)
        o = self.attention(at + "self_attn", self.rope(q), self.rope(k), v)
        x = self.round(x + self.linear(at + "self_attn.o_proj", o))
        n = self.norm(at + "post_attention_layernorm", x, self.fp8_inputs)
        inner = self.activate(self.linear(at + "mlp.gate_proj", n))
        inner = self.round(inner * self.linear(at + "mlp.up_proj", n), self.fp8_inputs)
        return self.round(x + self.linear(at + "mlp.down_proj", inner))

    def logits(self, ids):
        """ids [windows, tokens] -> [windows, tokens, vocab]."""
        table = self.get(self.prefix + "wte.weight" if self.gpt2 else "model.embed_tokens.weight")
        x = table[ids]
        if self.gpt2:
            x = self.round(x + self.get(self.prefix + "wpe.weight")[:ids.shape[1]])
        elif self.family == "gemma":
            x = self.round(x * self.round(self.b.arange(1) + self.hidden ** 0.5))
        layer = self.gpt2_layer if self.gpt2 else self.llama_layer
        for i in range(self.layers):
            x = layer(i, x)
        x = self.norm(self.prefix + "ln_f" if self.gpt2 else "model.norm", x)
        head = self.get("lm_head.weight")
        return self.round(x @ (table if head is None else head).T)


def evaluate(model, ids, window, max_windows):
    count = -(-(len(ids) - 1) // window)
    count = min(count, max_windows) if max_windows else count
    at_once = model.b.at_once
    loss, tokens = 0.0, 0
    for begin in range(0, count, at_once):
        pieces = [ids[i * window:i * window + window + 1]
                  for i in range(begin, min(begin + at_once, count))]
        for length in sorted({len(p) for p in pieces}, reverse=True):
            batch = model.b.ids(np.array([p for p in pieces if len(p) == length]))
            loss += model.b.loss(model.logits(batch[:, :-1]), batch[:, 1:])
            tokens += len(batch) * (length - 1)
    return float(np.exp(loss / tokens)), tokens


def compare(model, ids, path):
    """(share of tokens of equal logits, relative L2 of all) against a file of `fp8calib logits`."""
    with safe_open(path, "np") as f:
        want = f.get_tensor("logits").reshape(ids.size, -1).astype(np.float64)
    off = model.b.host(model.logits(model.b.ids(ids))).reshape(want.shape) - want
    token = np.linalg.norm(off, axis=1) / np.linalg.norm(want, axis=1)
    return float((token <= 1e-5).mean()), float(np.linalg.norm(off) / np.linalg.norm(want))


def choose(name):
    if name == "numpy":
        return Numpy()
    try:
        return Torch()
    except ImportError:
        if name == "torch":
            raise
        return Numpy()


def read_ids(path):
    if not path.endswith(".json"):
        return np.load(path)
    with open(path) as f:
        return np.array(json.load(f)["ids"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ids", help="token ids: .npy or .json")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=20, help="0: all")
    parser.add_argument("--compute", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--with", dest="library", choices=["auto", "numpy", "torch"],
                        default="auto")
    parser.add_argument("--quantize-p", action="store_true", help="P in E4M3 before P V")
    parser.add_argument("--plain-attention", action="store_true", help="Q, K, V as they are")
    parser.add_argument("--plain-inputs", action="store_true", help="inputs are not quantized")
    parser.add_argument("--against", help="logits to compare with, instead of a perplexity")
    args = parser.parse_args()
    backend, ids = choose(args.library), read_ids(args.ids)
    for folder in args.models:
        model = Model(folder, args, backend)
        if args.against:
            equal, error = compare(model, ids, args.against)
            print(json.dumps({"path": folder, "equal": equal, "relative_l2": error}), flush=True)
            continue
        perplexity, tokens = evaluate(model, ids.reshape(-1), args.window, args.max_windows)
        print(json.dumps({"path": folder, "perplexity": perplexity, "tokens": tokens,
                          "window": args.window}), flush=True)


if __name__ == "__main__":
    main()
