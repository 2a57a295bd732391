"""Our safetensors files as the reference implementation reads them, its files as we do, and the
same verdict on malformed ones. Skipped (77) where Python has no safetensors package."""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

try:
    import safetensors
except ImportError:
    print("skipped: no safetensors package")
    sys.exit(77)

HELPER = os.path.join(os.environ["FP8_BINARY_DIR"], "tests", "test_safetensors")
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
        "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
        "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
        "U64": 64}
# What we refuse and the reference lets pass: it caps no rank, takes names with control characters
# and the last one of duplicate keys.
STRICTER = {"rank above the cap", "duplicate tensor", "duplicate in metadata",
            "metadata with NUL", "name with a new line", "name with NUL", "name with DEL",
            "name with C1", "name too long"}
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("failed:", what)


def reference(path):
    """{name: (dtype, shape, crc32)} as the package reads it, or None where it refuses."""
    with open(path, "rb") as f:
        data = f.read()
    try:
        tensors = safetensors.deserialize(data)
    except Exception:
        return None
    return {name: (t["dtype"], t["shape"], zlib.crc32(bytes(t["data"]))) for name, t in tensors}


def ours(path):
    run = subprocess.run([HELPER, "--list", path], capture_output=True, text=True)
    check(run.returncode in (0, 1), f"{path}: exit status {run.returncode}")
    if run.returncode:
        return None
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return {name: (dtype, json.loads(shape), int(crc)) for name, dtype, shape, crc in rows}


def compare(path):
    theirs, mine = reference(path), ours(path)
    check(theirs is not None and theirs == mine, f"{path}: {theirs} against {mine}")


def random_file(rng):
    """A well-formed file, laid out in an order of its own."""
    header, data = {"__metadata__": {"format": "pt", "\u03bb": "\"\\\n"}}, b""
    for i in range(rng.randrange(8)):
        dtype = rng.choice(sorted(BITS))
        shape = [rng.choice((0, 1, 2, 3, 8, 17)) for _ in range(rng.randrange(5))]
        if BITS[dtype] % 8:
            shape.append(4)
        bits = BITS[dtype]
        for size in shape:
            bits *= size
        header[f"layer.{i}\u00e9'\"" if i % 2 else f"w{i}"] = {
            "dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + bits // 8]}
        data += rng.randbytes(bits // 8)
    items = list(header.items())
    rng.shuffle(items)
    text = json.dumps(dict(items), ensure_ascii=rng.random() < 0.5).encode()
    text += b" " * rng.randrange(9)
    return struct.pack("<Q", len(text)) + text + data


def mutate(rng, data):
    """One small change in the header."""
    data = bytearray(data)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    at = rng.randrange(8, end)
    kind = rng.randrange(3)
    if kind == 0:
        data[at] = rng.choice(b"0123456789-.,:[]{}\"eE \\u\x80")
    elif kind == 1:
        other = rng.randrange(8, end)
        data[at], data[other] = data[other], data[at]
    else:
        data = data[:rng.randrange(len(data))] if rng.random() < 0.5 else data + b"\0"
    return bytes(data)


def main():
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([HELPER, "--write", folder], check=True)
        names = sorted(os.listdir(folder))
        check(len(names) == 10, f"files written: {names}")
        for name in names:
            compare(os.path.join(folder, name))

        path = os.path.join(folder, "mutated")
        verdicts = [0, 0]
        for i in range(400):
            good = random_file(rng)
            with open(path, "wb") as f:
                f.write(good if i % 4 == 0 else mutate(rng, good))
            theirs, mine = reference(path), ours(path)
            check(i % 4 or mine is not None, f"random file {i} refused")
            # A mutation may make a duplicate key, which the reference takes.
            if theirs is not None and mine is None:
                message = subprocess.run([HELPER, "--list", path], capture_output=True,
                                         text=True).stderr
                check("duplicate key" in message or "control character" in message,
                      f"random file {i}: only we refuse it: {message}")
            else:
                check(theirs == mine, f"random file {i}: {theirs} against {mine}")
            verdicts[mine is None] += 1
        print(f"random files: {verdicts[0]} read alike, {verdicts[1]} refused")

        bad = os.path.join(folder, "bad")
        os.mkdir(bad)
        subprocess.run([HELPER, "--bad", bad], check=True)
        for name in sorted(os.listdir(bad)):
            path = os.path.join(bad, name)
            check(ours(path) is None, f"{name}: we read it")
            check((reference(path) is not None) == (name in STRICTER), f"{name}: reference")
    return 1 if failures else 0


sys.exit(main())
