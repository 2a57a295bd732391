"""Casts against ml_dtypes, an implementation that shares nothing with ours: every BF16 and F16 and a
million floats. ml_dtypes makes NaN (E4M3) or Inf (E5M2) where ours saturates, so inputs beyond the
largest value are clamped for it. Skipped (77) where numpy, ml_dtypes or the shared library are
missing, or the library is sanitized: Python could not load it."""
import ctypes
import glob
import os
import sys

try:
    import ml_dtypes
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

if os.environ.get("FP8_SANITIZED") == "1":
    print("skipped: a sanitized library")
    sys.exit(77)
found = sorted(glob.glob(os.path.join(os.environ.get("FP8_BINARY_DIR", "build"), "libfp8rt.so*")))
if not found:
    print("skipped: libfp8rt.so is not built")
    sys.exit(77)
lib = ctypes.CDLL(found[0])
lib.fp8_dtype_parse.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_char_p, ctypes.c_size_t]
lib.fp8_device_create.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p, ctypes.c_int32]
lib.fp8_quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p,
                             ctypes.c_int, ctypes.c_int64, ctypes.c_void_p]
lib.fp8_dequantize.argtypes = lib.fp8_quantize.argtypes


def dtype(name):
    out = ctypes.c_int()
    assert lib.fp8_dtype_parse(ctypes.byref(out), name.encode(), len(name)) == 0
    return out.value


device = ctypes.c_void_p()
assert lib.fp8_device_create(ctypes.byref(device), b"cpu", 0) == 0
failures = 0


def check(what, got, want):
    global failures
    wrong = np.flatnonzero(got != want)
    for i in wrong[:10]:
        print(f"{what}: [{i}] got {got[i]}, want {want[i]}")
    failures += len(wrong)


rng = np.random.default_rng(1)
every = np.arange(65536, dtype=np.uint16)
inputs = {
    "BF16": every.view(ml_dtypes.bfloat16),
    "F16": every.view(np.float16),
    "F32": rng.integers(0, 2**32, 1 << 20, dtype=np.uint32).view(np.float32),
}
inputs["F32"][::2] = rng.normal(0, 30, 1 << 19)
formats = {"F8_E4M3": (ml_dtypes.float8_e4m3fn, 448.0), "F8_E5M2": (ml_dtypes.float8_e5m2, 57344.0)}

for to, (kind, largest) in formats.items():
    for name, x in inputs.items():
        codes = np.empty(x.size, np.uint8)
        assert lib.fp8_quantize(device, codes.ctypes.data, dtype(to), x.ctypes.data, dtype(name),
                                x.size, None) == 0
        wide = x.astype(np.float32)
        sign = np.signbit(wide)
        wide = np.where(np.isnan(wide), wide, np.clip(wide, -largest, largest))
        with np.errstate(invalid="ignore"):
            want = wide.astype(kind).view(np.uint8) & 0x7F | sign.astype(np.uint8) << 7
        check(f"{name} -> {to}", codes, want)
    codes = np.arange(256, dtype=np.uint8)
    values = np.empty(256, np.float32)
    assert lib.fp8_dequantize(device, values.ctypes.data, dtype("F32"), codes.ctypes.data,
                              dtype(to), 256, None) == 0
    want = codes.view(kind).astype(np.float32)
    check(f"{to} -> F32", np.nan_to_num(values, nan=-1), np.nan_to_num(want, nan=-1))
sys.exit(1 if failures else 0)
