#!/usr/bin/env python3
"""Decode attention of the peers that are installed, on the shapes of `fp8calib bench decode`.

    python3 bench/decode_peers.py [b,h,h_kv,d,kv ...]

torch's SDPA (BF16, contiguous cache, GQA), FlashInfer and FlashAttention (paged, BF16 and FP8 where
they take it): CUDA graphs of calls over caches in turns, so that no L2 holds them; median of 15
replays; outputs against FP32 (relative L2). TB/s of the cache's bytes. One line of CSV a result;
what is not installed or refuses has a line with the reason.
"""
import math
import sys

import torch

SHAPES = ["64,16,16,256,1024", "64,16,16,256,4096", "64,16,16,256,8192", "64,32,8,128,1024",
          "64,32,8,128,4096", "64,32,8,128,8192", "1,32,4,128,4096", "1,32,4,128,16384",
          "1,32,4,128,65536", "1,32,4,128,262144"]
PAGE, ROTATED, MOST_COPIES, ROUNDS = 64, 1 << 30, 64, 15


def cache(b, h_kv, d, kv, dtype):
    """[copies, 2, b, h_kv, kv, d]: K and V of caches in turns."""
    bytes_one = 2 * b * h_kv * kv * d * (1 if dtype == torch.float8_e4m3fn else 2)
    copies = min(MOST_COPIES, 1 + ROTATED // bytes_one)
    x = torch.empty(copies, 2, b, h_kv, kv, d, device="cuda", dtype=dtype)
    for i in range(copies):
        for k in range(2):
            for s in range(b):
                x[i, k, s] = torch.randn(h_kv, kv, d, device="cuda").to(dtype)
    return x, bytes_one


def expected(q, k, v):
    """FP32, [b, h, d]."""
    b, h, d = q.shape
    group = h // k.shape[1]
    o = torch.empty(b, h, d, device="cuda")
    for s in range(b):
        kk = k[s].float().repeat_interleave(group, 0)
        vv = v[s].float().repeat_interleave(group, 0)
        p = torch.softmax(torch.einsum("hd,hkd->hk", q[s].float(), kk) / math.sqrt(d), -1)
        o[s] = torch.einsum("hk,hkd->hd", p, vv)
    return o


def timed(calls):
    """us of one call; calls[i]() enqueues work on cache i."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    us = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        us.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(us)[ROUNDS // 2]


def sdpa(q, x):
    """One call a cache, and the output over cache 0."""
    def call(i):
        return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], x[i, 0], x[i, 1],
                                                                enable_gqa=True)
    return [lambda i=i: call(i) for i in range(len(x))], call(0)[:, :, 0]


def paged(x):
    """[pages, PAGE, h_kv, d] of K and V of a cache, sequences one after the other."""
    two, b, h_kv, kv, d = x.shape
    y = x.view(two, b, h_kv, kv // PAGE, PAGE, d).permute(0, 1, 3, 4, 2, 5)
    return y.reshape(2, b * kv // PAGE, PAGE, h_kv, d).contiguous()


def flashinfer(q, x):
    import flashinfer
    copies, _, b, h_kv, kv, d = x.shape
    pages = kv // PAGE
    room = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    plan = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=True)
    ends = torch.arange(0, b + 1, dtype=torch.int32, device="cuda") * pages
    ids = torch.arange(b * pages, dtype=torch.int32, device="cuda")
    last = torch.full((b,), PAGE, dtype=torch.int32, device="cuda")
    plan.plan(ends, ids, last, q.shape[1], h_kv, d, PAGE, q_data_type=q.dtype,
              kv_data_type=x.dtype)
    caches = [paged(x[i]) for i in range(copies)]
    return [lambda c=c: plan.run(q, (c[0], c[1])) for c in caches], plan.run(
        q, (caches[0][0], caches[0][1]))


def flash_attention(q, x):
    from flash_attn import flash_attn_with_kvcache
    copies, _, b, h_kv, kv, d = x.shape
    caches = [paged(x[i]) for i in range(copies)]
    table = torch.arange(b * kv // PAGE, dtype=torch.int32, device="cuda").view(b, -1)
    lengths = torch.full((b,), kv, dtype=torch.int32, device="cuda")

    def call(c):
        return flash_attn_with_kvcache(q[:, None], c[0], c[1], cache_seqlens=lengths,
                                       block_table=table)
    return [lambda c=c: call(c) for c in caches], call(caches[0])[:, 0]


PEERS = [("torch SDPA BF16", sdpa, torch.bfloat16), ("FlashInfer BF16", flashinfer, torch.bfloat16),
         ("FlashInfer FP8 KV", flashinfer, torch.float8_e4m3fn),
         ("FlashAttention BF16", flash_attention, torch.bfloat16)]


def main():
    print("shape,provider,us,TB/s,rel_L2,note")
    for text in sys.argv[1:] or SHAPES:
        b, h, h_kv, d, kv = map(int, text.split(","))
        shape = text.replace(",", " ")
        for name, peer, dtype in PEERS:
            x = None
            try:
                x, size = cache(b, h_kv, d, kv, dtype)
                q = torch.randn(b, h, d, device="cuda").to(torch.bfloat16)
                calls, o = peer(q, x)
                want = expected(q, x[0, 0], x[0, 1])
                error = ((o.float() - want).norm() / want.norm()).item()
                if not error < 2e-2:
                    raise RuntimeError(f"wrong: relative L2 {error:.3g}")
                us = timed(calls)
                print(f"{shape},{name},{us:.2f},{size / us * 1e-6:.3f},{error:.2e},", flush=True)
            except Exception as e:  # a peer that is missing or refuses must not stop the others
                reason = str(e).splitlines()[0][:120].replace(",", ";") if str(e) else repr(e)
                print(f"{shape},{name},,,,{type(e).__name__}: {reason}", flush=True)
            del x
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
