#!/usr/bin/env python3
"""FP8 products of this library beside torch._scaled_mm: one process, one stream, in turns.

    FP8_LIBRARY=build/libfp8rt.so python3 bench/linear_peers.py [--shapes large|tokens|blocks|all]
        [--modes tensor,row] [--rounds 15] [--csv FILE]

Each line is a shape M x N x K with one scaling and one kind of accumulation; a time is the median
of `rounds` replays of a CUDA graph of several calls, with its 0.2 and 0.8 quantiles; operands are
normal numbers, weights N(0, 0.02), and calls go round copies of the weights that together exceed
the L2 cache. Providers take turns round by round. Sampled elements are checked against FP64.
"""
import argparse
import ctypes
import os
import sys

import torch

I64, PTR, INT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
L2_BYTES = 130 << 20


class Gemm(ctypes.Structure):  # fp8_gemm of quant/gemm.h
    _fields_ = [("m", I64), ("n", I64), ("k", I64), ("a", PTR), ("b", PTR), ("d", PTR),
                ("lda", I64), ("ldb", I64), ("ldd", I64), ("a_dtype", INT), ("b_dtype", INT),
                ("d_dtype", INT), ("b_is_kn", INT), ("alpha", ctypes.c_float), ("scaling", INT),
                ("a_descale", PTR), ("b_descale", PTR), ("a_descale_count", I64),
                ("b_descale_count", I64), ("a_descale_ld", I64), ("b_descale_ld", I64),
                ("bias", PTR), ("bias_dtype", INT), ("activation", INT), ("residual", PTR),
                ("residual_dtype", INT), ("ldr", I64), ("d_scale", PTR), ("d_amax", PTR),
                ("batch", I64), ("a_stride", I64), ("b_stride", I64), ("d_stride", I64),
                ("r_stride", I64), ("accumulate", INT), ("backend", INT), ("launch", INT)]


class Tuned(ctypes.Structure):
    _fields_ = [("candidates", ctypes.c_int32), ("first_us", ctypes.c_double),
                ("best_us", ctypes.c_double)]


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.fp8_last_message.restype = ctypes.c_char_p
        self.c.fp8_device_stream.restype = PTR
        self.c.fp8_gemm_workspace_size.restype = ctypes.c_size_t
        self.device = PTR()
        self.check(self.c.fp8_device_create(ctypes.byref(self.device), b"cuda", 0))
        self.stream = torch.cuda.ExternalStream(self.c.fp8_device_stream(self.device))
        self.e4m3, self.bf16 = self.dtype(b"F8_E4M3"), self.dtype(b"BF16")

    def check(self, status):
        if status:
            raise RuntimeError(self.c.fp8_last_message().decode())

    def dtype(self, name):
        out = INT()
        self.check(self.c.fp8_dtype_parse(ctypes.byref(out), name, ctypes.c_size_t(len(name))))
        return out.value

    def size(self, g):
        return self.c.fp8_gemm_workspace_size(self.device, ctypes.byref(g))

    def run(self, g, work):
        self.check(self.c.fp8_gemm_run(self.device, ctypes.byref(g), PTR(work.data_ptr()),
                                       ctypes.c_size_t(work.numel())))

    def tune(self, g, work):
        found = Tuned()
        self.check(self.c.fp8_gemm_tune(self.device, ctypes.byref(g), PTR(work.data_ptr()),
                                        ctypes.c_size_t(work.numel()), ctypes.byref(found)))
        return found


MODELS = {"Gemma-7B": [(12288, 3072), (3072, 4096), (49152, 3072), (3072, 24576)],
          "Llama-8B": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]}
LARGE = [(8192, 8192, 8192), (8192, 12288, 4096), (8192, 16384, 4096), (8192, 4096, 16384),
         (4096, 4096, 4096)]


def shapes_of(which):
    out = []
    if which in ("large", "all"):
        out += LARGE
    if which in ("tokens", "all"):
        out += [(m, n, k) for sizes in MODELS.values() for m in (256, 512, 1024, 2048)
                for n, k in sizes]
    return out


class Problem:
    """Operands of one product, `copies` of the weights, and their descales."""

    def __init__(self, m, n, k, mode):
        self.m, self.n, self.k, self.mode = m, n, k, mode
        fp8 = torch.float8_e4m3fn
        copies = max(1, -(-L2_BYTES // (n * k)))
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
        if mode == "block":
            xa = x.view(m, k // 128, 128).abs().amax(2).float() / 448
            wa = w.view(n // 128, 128, k // 128, 128).abs().amax(dim=(1, 3)).float() / 448
            q = (x.float().view(m, k // 128, 128) / xa[:, :, None]).view(m, k)
            r = (w.float().view(n // 128, 128, k // 128, 128) / wa[:, None, :, None]).view(n, k)
            self.xa = xa.t().contiguous()  # [groups][rows]
            ld = -(-(k // 128) // 4) * 4
            self.wa = torch.ones(n // 128, ld, device="cuda")
            self.wa[:, :k // 128] = wa
        else:
            whole = mode == "tensor"
            self.xa = (x.abs().amax() if whole else x.abs().amax(1, keepdim=True)).float() / 448
            self.wa = (w.abs().amax() if whole else w.abs().amax(1, keepdim=True)).float() / 448
            q, r = x.float() / self.xa, w.float() / self.wa
        self.x = q.clamp(-448, 448).to(fp8)
        self.w = [r.clamp(-448, 448).to(fp8) for _ in range(copies)]
        self.out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def gemm(self, lib, copy, fast):
        m, n, k = self.m, self.n, self.k
        g = Gemm(m=m, n=n, k=k, a=self.x.data_ptr(), b=self.w[copy].data_ptr(),
                 d=self.out.data_ptr(), lda=k, ldb=k, ldd=n, a_dtype=lib.e4m3, b_dtype=lib.e4m3,
                 d_dtype=lib.bf16, alpha=1.0, a_descale=self.xa.data_ptr(),
                 b_descale=self.wa.data_ptr(), accumulate=int(fast))
        if self.mode == "block":
            g.scaling, g.a_descale_ld, g.b_descale_ld = 1, m, self.wa.shape[1]
        else:
            g.a_descale_count = 1 if self.mode == "tensor" else m
            g.b_descale_count = 1 if self.mode == "tensor" else n
        return g

    def torch_call(self, copy, fast):
        if self.mode == "block":  # [m, k/128] with rows next to each other; [k/128, n/128]
            sa, sb = self.xa.t(), self.wa[:, :self.k // 128].t()
        elif self.mode == "tensor":
            sa, sb = self.xa, self.wa
        else:
            sa, sb = self.xa, self.wa.t()
        return torch._scaled_mm(self.x, self.w[copy].t(), scale_a=sa, scale_b=sb,
                                out_dtype=torch.bfloat16, use_fast_accum=fast)

    def error(self, got):
        """Relative L2 of sampled elements against FP64 on the same codes."""
        rows = torch.linspace(0, self.m - 1, 24, device="cuda").long()
        cols = torch.linspace(0, self.n - 1, 256, device="cuda").long()
        x, w = self.x[rows].double(), self.w[0][cols].double()
        if self.mode == "block":
            x = x * self.xa.t()[rows].double().repeat_interleave(128, 1)
            w = w * self.wa[cols // 128, :self.k // 128].double().repeat_interleave(128, 1)
        else:
            x = x * (self.xa if self.mode == "tensor" else self.xa[rows]).double()
            w = w * (self.wa if self.mode == "tensor" else self.wa[cols]).double()
        want = x @ w.t()
        return ((got[rows][:, cols].double() - want).norm() / want.norm()).item()


def capture(stream, calls, target_ms=1.0):
    """A graph of as many calls as take about target_ms, going round `calls`."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    calls[0]()
    begin.record(stream)
    calls[0]()
    end.record(stream)
    end.synchronize()
    count = min(64, max(len(calls), int(target_ms / max(begin.elapsed_time(end), 1e-3)) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for i in range(count):
            calls[i % len(calls)]()
    return graph, count


def race(stream, graphs, rounds):
    """{name: sorted times of one call, us}."""
    times = {name: [] for name in graphs}
    events = {name: [] for name in graphs}
    for graph, _ in graphs.values():
        graph.replay()
    for _ in range(rounds):
        for name, (graph, _) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            events[name].append((begin, end))
    stream.synchronize()
    for name, (_, count) in graphs.items():
        times[name] = sorted(b.elapsed_time(e) * 1e3 / count for b, e in events[name])
    return times


def measure(lib, shape, mode, fast, rounds):
    p = Problem(*shape, mode)
    gemms = [p.gemm(lib, i, fast) for i in range(len(p.w))]
    work = torch.empty(lib.size(gemms[0]), dtype=torch.uint8, device="cuda")
    ours = [lambda g=g: lib.run(g, work) for g in gemms]
    errors, graphs, notes = {}, {}, []

    def add(name, calls, result):
        try:
            calls[0]()
            errors[name] = p.error(result())
            graphs[name] = capture(lib.stream, calls)
        except Exception as e:  # a refusal is a result
            notes.append("%s: %s" % (name, str(e).split("\n")[0][:100]))
            torch.cuda.synchronize()

    lib.c.fp8_gemm_cache_clear()
    add("first", ours, lambda: p.out)
    p.out.zero_()
    tuned = lib.tune(gemms[0], work)
    add("ours", ours, lambda: p.out)
    add("torch", [lambda i=i: p.torch_call(i, fast) for i in range(len(p.w))],
        lambda: p.torch_call(0, fast))
    if "ours" in graphs:
        graphs["ours again"] = graphs["ours"]  # the spread of a run against itself
    return race(lib.stream, graphs, rounds), errors, notes, tuned


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="all")
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--modes", default="tensor,row")
    parser.add_argument("--accumulation", default="exact,fast")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--csv")
    o = parser.parse_args()
    lib = Library(os.environ.get("FP8_LIBRARY", "libfp8rt.so"))
    shapes = [tuple(int(x) for x in s.split("x")) for s in o.shape] or shapes_of(o.shapes)
    jobs = [(s, mode, acc == "fast") for s in shapes for mode in o.modes.split(",")
            for acc in o.accumulation.split(",")]
    if not o.shape and o.shapes in ("blocks", "all"):
        jobs.append(((4096, 7168, 16384), "block", False))
    lines = ["shape,scaling,accumulation,ours_us,first_us,torch_us,ours_tflops,torch_tflops,"
             "torch/ours,first/ours,again/ours,spread,ours_error,torch_error,candidates,note"]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda,
          flush=True)
    bad = 0
    with torch.cuda.stream(lib.stream):
        for (m, n, k), mode, fast in jobs:
            times, errors, notes, tuned = measure(lib, (m, n, k), mode, fast, o.rounds)
            med = {name: t[len(t) // 2] for name, t in times.items()}
            ours = med["ours"]
            nan = float("nan")
            t = times["ours"]
            row = ["%dx%dx%d" % (m, n, k), mode, "fast" if fast else "exact", "%.2f" % ours,
                   "%.2f" % med.get("first", nan), "%.2f" % med.get("torch", nan),
                   "%.0f" % (2e-6 * m * n * k / ours),
                   "%.0f" % (2e-6 * m * n * k / med.get("torch", nan)),
                   "%.3f" % (med.get("torch", nan) / ours), "%.3f" % (med["first"] / ours),
                   "%.3f" % (med["ours again"] / ours),
                   "%.3f" % ((t[len(t) * 4 // 5] - t[len(t) // 5]) / ours),
                   "%.1e" % errors["ours"], "%.1e" % errors.get("torch", nan),
                   str(tuned.candidates), "; ".join(notes).replace(",", " ")]
            lines.append(",".join(row))
            print(" ".join(row), flush=True)
            bad += not errors["ours"] <= (1e-2 if fast else 4e-3)
    if o.csv:
        with open(o.csv, "w") as f:
            f.write("\n".join(lines) + "\n")
    if bad:
        print("%d results are wrong" % bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
