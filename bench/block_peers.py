#!/usr/bin/env python3
"""A decoder block of torch beside `fp8calib bench block`, one after the other on one GPU.

    FP8CALIB=build/fp8calib python3 bench/block_peers.py [--hidden 4096 --ffn-hidden 16384
        --heads 32 --seq 256 --batch 32] [--rounds 40]

torch: the same form (LayerNorm, GELU tanh, biases, causal) in BF16, attention by
scaled_dot_product_attention and plain (scores, softmax, product), forward in a CUDA graph, before
and after ours, so that a drift of the clock shows. Weights N(0, 0.02), inputs normal.
"""
import argparse
import math
import os
import subprocess
import sys

import torch
import torch.nn.functional as F


class Block(torch.nn.Module):
    def __init__(self, hidden, ffn, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)
        self.qkv, self.o = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, hidden)
        self.up, self.down = torch.nn.Linear(hidden, ffn), torch.nn.Linear(ffn, hidden)
        for linear in (self.qkv, self.o, self.up, self.down):
            torch.nn.init.normal_(linear.weight, 0, 0.02)

    def attend(self, q, k, v):
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v

    def forward(self, x):
        b, s, hidden = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.o(self.attend(q, k, v).transpose(1, 2).reshape(b, s, hidden))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def median_ms(block, x, rounds):
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            block(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            block(x)
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return sorted(times)[rounds // 2]


def run_torch(args, when):
    x = torch.randn(args.batch, args.seq, args.hidden, device="cuda", dtype=torch.bfloat16)
    for fused, name in ((True, "SDPA"), (False, "plain")):
        torch.cuda.reset_peak_memory_stats()
        block = Block(args.hidden, args.ffn_hidden, args.heads, fused).cuda().bfloat16()
        ms = median_ms(block, x, args.rounds)
        print(f"torch {torch.__version__} BF16, {name} ({when}): forward {ms:.3f} ms/iter, "
              f"{args.batch * args.seq / ms * 1e3:.0f} tokens/s, "
              f"peak {torch.cuda.max_memory_allocated() * 1e-9:.2f} GB", flush=True)
        del block
    torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 4096), ("ffn-hidden", 16384), ("heads", 32), ("seq", 256),
                        ("batch", 32), ("rounds", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    ours = [os.environ.get("FP8CALIB", "fp8calib"), "bench", "block"]
    for name in ("hidden", "ffn_hidden", "heads", "seq", "batch", "rounds"):
        ours += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    run_torch(args, "before")
    status = subprocess.run(ours, check=False).returncode
    run_torch(args, "after")
    return status


if __name__ == "__main__":
    sys.exit(main())
