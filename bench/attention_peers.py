#!/usr/bin/env python3
"""Attention by whatever else is installed here, in the columns of `fp8calib bench attention|flux`.

    attention_peers.py attention [--shape b,h,h_kv,d,s,mask]... [--csv FILE]
    attention_peers.py flux      [--shape LENGTH]...            [--csv FILE]

Providers: PyTorch's SDPA by cuDNN and by flash, FlashAttention 2 and 3 (3 also in FP8),
SageAttention, Transformer Engine (FP8 by delayed scaling), xFormers; those that are not installed
or refuse say so. Same protocol as ours: random normal data, all providers in turns, medians with
0.2 and 0.8 quantiles of replayed CUDA graphs, causal products counted half, rows checked (relative
L2; attention: sampled rows in FP64 on the operands given; flux: all of it in FP32 on the BF16
operands). A comparison with figures of another run must say that it is one.
"""
import argparse
import csv
import math
import statistics
import sys

import torch
import torch.nn.functional as F

SHAPES = """1,24,24,128,4224,none 1,24,24,128,4608,none 2,16,16,64,512,none 2,16,16,128,2048,causal
4,16,16,128,4096,none 1,16,16,128,16384,none 1,16,16,128,16384,causal 2,32,4,128,8192,causal
1,8,8,256,16384,none 4,32,32,64,4096,none 32,32,32,128,256,causal 64,16,16,256,128,causal""".split()
LENGTHS = [str(4096 + n) for n in (128, 256, 320, 384, 448, 512)]
COLUMNS = ["ms", "ms_0.2", "ms_0.8", "TFLOP/s", "rel_L2", "absmax", "mae", "mse"]
E4M3_MAX = 448.0
REPLAY_MS = 0.33


class Problem:
    """BF16 q, k, v of [b, s, h, d]; codes with one descale a tensor."""

    def __init__(self, shape, flux):
        b, h, h_kv, d, s, mask = shape.split(",")[:6]
        self.b, self.h, self.h_kv, self.d, self.s = (int(x) for x in (b, h, h_kv, d, s))
        self.causal = mask != "none"
        self.flux = flux
        self.q = self.random(self.h)
        self.k = self.random(self.h_kv)
        self.v = self.random(self.h_kv)

    def random(self, heads):
        x = torch.randn(self.b, self.s, heads, self.d, device="cuda")
        if self.flux:
            x = x * torch.randint(1, 5, x.shape, device="cuda")
        return x.bfloat16()

    def flops(self):
        return 4.0 * self.b * self.h * self.s * self.s * self.d * (0.5 if self.causal else 1.0)

    def rows(self):
        """Sequences, heads and tokens of the sample."""
        i = torch.arange(64)
        return i // self.h % self.b, i % self.h, (self.s - 1) - i * 7919 % self.s

    def reference(self, q, k, v):
        """Sampled rows in FP64."""
        out = []
        for s, h, t in zip(*(x.tolist() for x in self.rows())):
            n = t + 1 if self.causal else self.s
            kv = h // (self.h // self.h_kv)
            scores = k[s, :n, kv].double() @ q[s, t, h].double() / math.sqrt(self.d)
            out.append(torch.softmax(scores, 0) @ v[s, :n, kv].double())
        return torch.stack(out)

    def reference_f32(self):
        """All of O in FP32, a head at a time."""
        out = torch.empty(self.b, self.s, self.h, self.d, device="cuda")
        for h in range(self.h):
            q, k, v = (x[:, :, h].float() for x in (self.q, self.k, self.v))
            out[:, :, h] = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(self.d), -1) @ v
        return out


def quantize(x):
    amax = x.abs().max().float().clamp(min=1e-12)
    return (x.float() * (E4M3_MAX / amax)).to(torch.float8_e4m3fn), (amax / E4M3_MAX)


# ---- providers: a function of a problem that returns (call, operands of the reference) -----------

def by_heads(*xs):
    return [x.transpose(1, 2) for x in xs]


def sdpa(backend):
    def make(p):
        from torch.nn.attention import sdpa_kernel
        q, k, v = by_heads(p.q, p.k, p.v)

        def call():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=p.causal, enable_gqa=p.h != p.h_kv).transpose(1, 2)
        return call, (p.q, p.k, p.v)
    return make


def flash_attention_2(p):
    from flash_attn import flash_attn_func
    return lambda: flash_attn_func(p.q, p.k, p.v, causal=p.causal), (p.q, p.k, p.v)


def first(x):
    return x[0] if isinstance(x, tuple) else x


def flash_attention_3(p):
    from flash_attn_interface import flash_attn_func
    return lambda: first(flash_attn_func(p.q, p.k, p.v, causal=p.causal)), (p.q, p.k, p.v)


def flash_attention_3_fp8(p):
    from flash_attn_interface import flash_attn_func

    def spread(descale):
        return descale.expand(p.b, p.h_kv).contiguous()

    def call_codes(q, k, v):
        return first(flash_attn_func(q[0], k[0], v[0], causal=p.causal, q_descale=spread(q[1]),
                                     k_descale=spread(k[1]), v_descale=spread(v[1])))
    if p.flux:
        return lambda: call_codes(quantize(p.q), quantize(p.k), quantize(p.v)), None
    codes = [quantize(x) for x in (p.q, p.k, p.v)]
    return lambda: call_codes(*codes), [c.float() * d for c, d in codes]


def sage(p):
    from sageattention import sageattn
    return lambda: sageattn(p.q, p.k, p.v, tensor_layout="NHD", is_causal=p.causal), \
        (p.q, p.k, p.v)


def transformer_engine_fp8(p):
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import DelayedScaling, Format
    recipe = DelayedScaling(fp8_format=Format.HYBRID, amax_history_len=1, fp8_dpa=True)
    attention = te.DotProductAttention(
        p.h, p.d, num_gqa_groups=p.h_kv, qkv_format="bshd",
        attn_mask_type="causal" if p.causal else "no_mask").cuda().eval()

    def call():
        with torch.no_grad(), te.fp8_autocast(enabled=True, fp8_recipe=recipe):
            return attention(p.q, p.k, p.v).view(p.b, p.s, p.h, p.d)
    return call, (p.q, p.k, p.v)


def xformers(p):
    from xformers import ops
    bias = ops.LowerTriangularMask() if p.causal else None
    k, v = (x.repeat_interleave(p.h // p.h_kv, 2) for x in (p.k, p.v))
    return lambda: ops.memory_efficient_attention(p.q, k, v, attn_bias=bias), (p.q, p.k, p.v)


def providers():
    backend = torch.nn.attention.SDPBackend
    return [("torch cuDNN BF16", sdpa(backend.CUDNN_ATTENTION)),
            ("torch flash BF16", sdpa(backend.FLASH_ATTENTION)),
            ("FlashAttention 2 BF16", flash_attention_2),
            ("FlashAttention 3 BF16", flash_attention_3),
            ("FlashAttention 3 FP8", flash_attention_3_fp8),
            ("SageAttention", sage),
            ("Transformer Engine FP8", transformer_engine_fp8),
            ("xFormers", xformers)]


# ---- timing and errors ---------------------------------------------------------------------------

def timed(call, runs):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / runs


def captured(call):
    """A graph of as many calls as take a third of a millisecond; the calls themselves if capture
    fails, which the note then says."""
    timed(call, 3)
    runs = max(1, min(64, int(REPLAY_MS / max(timed(call, 3), 1e-3)) + 1))
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(runs):
                call()
        return graph.replay, runs, ""
    except Exception as e:  # noqa: BLE001 - any provider may fail in its own way
        torch.cuda.synchronize()
        return (lambda: [call() for _ in range(runs)]), runs, f"no graph: {line(e)}"


def line(e):
    return f"{type(e).__name__}: {e}".splitlines()[0][:160]


def errors(p, call, operands, want):
    got = call()
    if p.flux:
        got, want = got.float(), want
    else:
        s, h, t = p.rows()
        got, want = got[s, t, h].double(), p.reference(*operands)
    e = (got - want).abs()
    return {"rel_L2": ((e ** 2).sum() / (want ** 2).sum()).sqrt().item(), "absmax": e.max().item(),
            "mae": e.mean().item(), "mse": (e ** 2).mean().item()}


def measure(subject, shape, flux, rounds):
    p = Problem(shape, flux)
    want = p.reference_f32() if flux else None
    rows, lanes = [], []
    for name, make in providers():
        row = {"subject": subject, "provider": name, "note": ""}
        rows.append(row)
        try:
            call, operands = make(p)
            row.update(errors(p, call, operands, want))
            replay, runs, row["note"] = captured(call)
            lanes.append((row, replay, runs, []))
        except ImportError:
            row["note"] = "not installed"
        except Exception as e:  # noqa: BLE001
            row["note"] = line(e)
    for _ in range(rounds):
        for row, replay, runs, times in lanes:
            times.append(timed(replay, 1) / runs)
    for row, _, _, times in lanes:
        times.sort()
        row["ms"] = statistics.median(times)
        row["ms_0.2"], row["ms_0.8"] = times[rounds // 5], times[rounds - 1 - rounds // 5]
        row["TFLOP/s"] = p.flops() / row["ms"] * 1e-9
    return rows


def show(row):
    numbers = "".join(f" {row[c]:>10.4g}" if c in row else f" {'-':>10}" for c in COLUMNS)
    print(f"  {row['provider']:<24}{numbers}  {row['note']}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", choices=["attention", "flux"])
    parser.add_argument("--shape", action="append")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--csv")
    args = parser.parse_args()
    flux = args.bench == "flux"
    if not torch.cuda.is_available():
        sys.exit("attention_peers: no CUDA device")
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{args.bench}, {torch.cuda.get_device_name()}, torch {torch.__version__}, "
          f"cuDNN {torch.backends.cudnn.version()}\n")
    print(f"  {'':<24}" + "".join(f" {c:>10}" for c in COLUMNS))
    table = []
    for subject in args.shape or (LENGTHS if flux else SHAPES):
        print(subject)
        shape = f"1,24,24,128,{subject},none" if flux else subject
        rows = measure(subject, shape, flux, args.rounds)
        for row in rows:
            show(row)
        table += rows
        torch.cuda.empty_cache()
    if args.csv:
        with open(args.csv, "w", newline="") as f:
            writer = csv.DictWriter(f, ["subject", "provider"] + COLUMNS + ["note"])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
