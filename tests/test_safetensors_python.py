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


def ours(paths):
    """The same of each file as our reader has it, or its message as a string."""
    run = subprocess.run([HELPER, "--list", *paths], capture_output=True, text=True, check=True)
    files = []
    for line in run.stdout.splitlines():
        if line.startswith("! "):
            files.append(line[2:])
        elif line.startswith("= "):
            files.append({})
        else:
            name, dtype, shape, crc = line.split("\t")
            files[-1][name] = (dtype, json.loads(shape), int(crc))
    check(len(files) == len(paths), f"{len(paths)} files, {len(files)} answers")
    return files


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


def check_written(folder):
    subprocess.run([HELPER, "--write", folder], check=True)
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    check(len(paths) == 10, f"files written: {paths}")
    for path, mine in zip(paths, ours(paths)):
        theirs = reference(path)
        check(theirs is not None and theirs == mine, f"{path}: {theirs} against {mine}")


def check_random(folder):
    """Random files, three of four with a mutation: read alike, or refused by both. Only we refuse
    duplicate keys and control characters."""
    rng = random.Random(1)
    paths = [os.path.join(folder, str(i)) for i in range(400)]
    for i, path in enumerate(paths):
        data = random_file(rng)
        with open(path, "wb") as f:
            f.write(data if i % 4 == 0 else mutate(rng, data))
    refused = 0
    for i, (path, mine) in enumerate(zip(paths, ours(paths))):
        theirs = reference(path)
        if not isinstance(mine, str):
            check(theirs == mine, f"random file {i}: {theirs} against {mine}")
            continue
        refused += 1
        check(i % 4, f"random file {i} refused: {mine}")
        check(theirs is None or "duplicate key" in mine or "control character" in mine,
              f"random file {i}: only we refuse it: {mine}")
    print(f"random files: {len(paths) - refused} read alike, {refused} refused")


def check_bad(folder):
    subprocess.run([HELPER, "--bad", folder], check=True)
    names = sorted(os.listdir(folder))
    paths = [os.path.join(folder, name) for name in names]
    for name, path, mine in zip(names, paths, ours(paths)):
        check(isinstance(mine, str), f"{name}: we read it")
        check((reference(path) is not None) == (name in STRICTER), f"{name}: reference")


def main():
    for step in (check_written, check_random, check_bad):
        with tempfile.TemporaryDirectory() as folder:
            step(folder)
    return 1 if failures else 0


sys.exit(main())
