"""Percentile, MSE and entropy calibrators against numpy, which shares nothing with ours: a record
of the sample model with histograms, several margins (with a large one activations have subnormal codes
alone, and clipping begins to pay), every point. Skipped (77) without numpy."""
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

F32 = np.float32
fp8calib = os.environ.get("FP8CALIB", "build/fp8calib")
source = os.environ.get("FP8_SOURCE_DIR", ".")
VALUES = (np.arange(2048, dtype=np.uint32)[:, None] << 20 |
          np.arange(16, dtype=np.uint32) << 16).view(F32)  # [bin, BF16 value in it]
EDGES = ((np.arange(2048, dtype=np.uint32) + 1) << 20).view(F32)


def bin_of(x):
    return int(np.array([x], F32).view(np.uint32)[0] >> 20)


def e4m3(x):
    """The value nearest to |x|, ties to even, saturated; in double, exact."""
    size = np.minimum(np.abs(x.astype(np.float64)), 448)
    exponent = np.frexp(np.maximum(size, 2.0 ** -6))[1] - 1
    step = np.ldexp(1.0, exponent - 3)
    return np.rint(size / step) * step


def pair(amax, margin):
    """scale, descale as F32 makes them."""
    top = F32(448) / F32(2) ** F32(margin)
    return F32(top / F32(amax)), F32(F32(amax) / top)


def errors(amax, margin):
    """Squared error of each value, [bin, 16]."""
    scale, descale = pair(amax, margin)
    with np.errstate(all="ignore"):
        back = (e4m3((VALUES * scale).astype(F32)).astype(F32) * descale).astype(F32)
        return (VALUES.astype(np.float64) - back.astype(np.float64)) ** 2


def divergence(bins, last, amax, margin):
    """Sum p log(p / q) over the bins up to `last`."""
    scale, _ = pair(amax, margin)
    inside, outside = bins[:last + 1].astype(np.float64), float(bins[last + 1:].sum())
    if inside.sum() == 0:
        return np.inf
    with np.errstate(all="ignore"):
        codes = e4m3((VALUES[:last + 1, 8] * scale).astype(F32))
    p, q = inside.copy(), np.zeros_like(inside)
    p[last] += outside
    for code in np.unique(codes):
        where = (codes == code) & (inside > 0)
        if where.any():
            q[where] = inside[codes == code].sum() / where.sum()
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def candidates(amax):
    top = bin_of(amax)
    yield amax, top
    for b in range(top - 1, max(top - 97, -1), -1):
        yield EDGES[b], b


def cut(rule, bins, amax, margin):
    used = np.nonzero(bins)[0]
    if rule == "percentile":
        rank = 0.99 * bins.sum()
        return EDGES[np.argmax(np.cumsum(bins) >= rank)]
    if rule == "mse":
        weight = bins[used].astype(np.float64)
        costs = [(weight * errors(a, margin)[used].mean(1)).sum() for a, _ in candidates(amax)]
    else:
        costs = [divergence(bins, b, a, margin) for a, b in candidates(amax)]
    return [a for a, _ in candidates(amax)][int(np.argmin(costs))]


def choose(rule, bins, amax, margin):
    """(amax, clipped): the rule's, where the error is certain to fall."""
    if amax == 0:
        return F32(amax), False
    to = cut(rule, bins, amax, margin)
    if not 0 < to < amax:
        return F32(amax), False
    used = np.nonzero(bins)[0]
    gain = (errors(amax, margin)[used] - errors(to, margin)[used]).min(1)
    return (F32(to), True) if (bins[used] * gain).sum() > 0 else (F32(amax), False)


def run(*arguments):
    done = subprocess.run([fp8calib, *arguments, "--quiet"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, arguments
    return done.stdout


def read(path):
    raw = open(path, "rb").read()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    points = header["__metadata__"]["points"].split("\n")

    def tensor(name, dtype):
        begin, stop = header[name]["data_offsets"]
        return np.frombuffer(raw[end + begin:end + stop], dtype)
    return (points, [tensor(f"{p}.amax_history", F32).max() for p in points],
            tensor("histograms", np.int64).reshape(len(points), 2048))


failures, clipped = 0, 0
with tempfile.TemporaryDirectory() as folder:
    out = os.path.join(folder, "out")
    run("run", os.path.join(source, "examples/sample-model"), "-o", out, "--histograms", "--device",
        "cpu", "--samples", "16", "--seq", "64", "--no-eval")
    points, amax, histograms = read(os.path.join(out, "calibration.safetensors"))
    for margin in (0, 15, 18):
        for rule in ("percentile", "mse", "entropy"):
            options = ["--percentile", "99"] if rule == "percentile" else []
            rows = json.loads(run("scales", out, "--calibrator", rule, "--margin", str(margin),
                                  "--json", *options))["points"]
            for point, a, bins, row in zip(points, amax, histograms, rows):
                want, is_clipped = choose(rule, bins, a, margin)
                clipped += is_clipped
                assert row["name"] == point
                if F32(row["amax"]) != want:
                    failures += 1
                    print(f"{rule}, margin {margin}, {point}: {row['amax']}, expected {want}")
if clipped == 0:
    print("nothing was clipped: the test says nothing")
sys.exit(failures > 0 or clipped == 0)
