"""tests/test_faults.py [all] [--seconds S] [--only COMMAND] - every call that may fail does, once
each and from there on: what a command of a build with -DFP8_FAULTS=ON (core/fault.h) then does.
It ends with one line and exit code 1, or as if nothing had been; the output is whole or as it
was, nothing else stays, and (in a build with sanitizers) nothing leaks. Without `all` only the
first, middle and last call of each place in the code are tried, and the rest from the first one
of each on; with it all others after those, in random order. What has not begun after S seconds
(of each command) is left out, and counted."""
import argparse
import concurrent.futures
import filecmp
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

FP8CALIB = os.path.abspath(os.environ.get("FP8CALIB", "build/sanitize/fp8calib"))
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.abspath(os.environ.get("FP8_SOURCE_DIR") or os.path.dirname(HERE))
# With FP8_FAULT_DEVICE=cuda (tests/gpu_faults.py): calls of CUDA and its libraries alone.
DEVICE = os.environ.get("FP8_FAULT_DEVICE", "cpu")
COMMON = ["-o", "out", "--device", DEVICE, "--quiet"]
COMMANDS = {
    "convert": ["convert", "model", *COMMON, "--threads", "1", "--max-shard-size", "400KB"],
    "convert over an output": ["convert", "model", *COMMON, "--threads", "1", "--force"],
    "run": ["run", "model", *COMMON, "--threads", "2", "--no-eval", "--samples", "2", "--batch",
            "1", "--seq", "16", "--data", "text.txt"],
}
if DEVICE == "cuda":
    COMMANDS["run, layer by layer"] = COMMANDS["run"] + ["--gpu-memory", "102500KB"]
RECORD = "out.calibration.safetensors"  # what --resume goes on from


def call(work, name, **fault):
    options = "exitcode=99:detect_leaks=1"
    environment = {**os.environ, "ASAN_OPTIONS": options, "LSAN_OPTIONS": "exitcode=99", **fault}
    return subprocess.run([FP8CALIB, *COMMANDS[name]], cwd=work, env=environment, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


def prepare(work, over):
    os.mkdir(work)
    os.symlink(os.path.join(SOURCE, "examples/sample-model"), os.path.join(work, "model"))
    with open(os.path.join(work, "text.txt"), "w", encoding="ascii") as f:
        f.write("The kernel allocates memory for the process.\n" * 20)
    if over:
        os.mkdir(os.path.join(work, "out"))
        with open(os.path.join(work, "out/old.safetensors"), "wb"):
            pass


def same(a, b):
    if not os.path.isdir(a) or sorted(os.listdir(a)) != sorted(os.listdir(b)):
        return False
    return filecmp.cmpfiles(a, b, os.listdir(b), shallow=False)[0] == os.listdir(b)


def judge(work, done, want, over):
    """What is wrong with how a command ended."""
    out, wrong = os.path.join(work, "out"), []
    whole = same(out, want)
    old = os.path.isdir(out) and os.listdir(out) == ["old.safetensors"]
    if done.returncode == 0 and not whole:
        wrong.append("exit code 0, but the output is not what it should be")
    if done.returncode not in (0, 1):
        wrong.append(f"exit code {done.returncode}")
    lines = done.stderr.count("\n")
    if lines != (done.returncode != 0) or lines and not done.stderr.startswith("fp8calib: "):
        wrong.append(f"{lines} lines on stderr: {done.stderr[:1500]}")
    if not whole and (not old if over else os.path.exists(out)):
        wrong.append("the output is neither whole nor as it was")
    left = set(os.listdir(work)) - {"model", "text.txt", "out"}
    left = {name for name in left if f"/{name}')" not in done.stderr and
            f"'{name}')" not in done.stderr}
    if done.returncode != 0:
        left.discard(RECORD)
    if left:
        wrong.append(f"left behind: {sorted(left)}")
    return wrong


def attempt(root, name, fault, want, until):
    """What went wrong; None: not begun."""
    if time.monotonic() > until:
        return None
    work = os.path.join(root, f"{name} {fault}")
    over = "over" in name
    prepare(work, over)
    done = call(work, name, FP8_FAULT=fault)
    wrong = judge(work, done, want, over)
    shutil.rmtree(work)
    return [f"[{name}, FP8_FAULT={fault}] {w}" for w in wrong]


def choose(log, everything):
    """Which of the calls in the log are to fail."""
    places = {}
    for k, line in enumerate(log, 1):
        if DEVICE == "cuda" and not line.startswith("cu"):
            continue
        places.setdefault(line, []).append(k)
    later = {k for p in places.values() for k in (p[len(p) // 2], p[-1]) if k != p[0]}
    chosen = [f"{p[0]}{more}" for more in ("", "+") for p in places.values()]
    chosen += [str(k) for k in sorted(later)]
    if everything:
        rest = {f"{k}{more}" for p in places.values() for k in p for more in ("", "+")}
        rest = sorted(rest - set(chosen))
        random.Random(1).shuffle(rest)
        chosen += rest
    return chosen


def main():
    a = argparse.ArgumentParser()
    a.add_argument("all", nargs="?", choices=["all"])
    a.add_argument("--seconds", type=float, default=float("inf"))
    a.add_argument("--only", choices=COMMANDS)
    a = a.parse_args()
    if not os.access(FP8CALIB, os.X_OK):
        print(f"skipped: no {FP8CALIB}", file=sys.stderr)
        return 77
    problems, shown = [], 0
    with tempfile.TemporaryDirectory() as root:
        for name in [a.only] if a.only else COMMANDS:
            work = os.path.join(root, name)
            prepare(work, "over" in name)
            done = call(work, name, FP8_FAULT_LOG=os.path.join(root, "log"))
            if not os.path.exists(os.path.join(root, "log")):
                print("skipped: not a build with -DFP8_FAULTS=ON", file=sys.stderr)
                return 77
            problems += [f"[{name}] {w}" for w in judge(work, done, work + "/out", False)]
            with open(os.path.join(root, "log"), encoding="ascii") as f:
                log = f.read().splitlines()
            os.remove(os.path.join(root, "log"))
            faults = choose(log, a.all)
            until = time.monotonic() + a.seconds
            with concurrent.futures.ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
                ended = list(pool.map(lambda f: attempt(root, name, f, work + "/out", until),
                                      faults))
            tried = [wrong for wrong in ended if wrong is not None]
            problems += [w for wrong in tried for w in wrong]
            print(f"{name}: {len(log)} calls at {len(set(log))} places, {len(tried)} of "
                  f"{len(faults)} faults, {len(problems)} problems so far", flush=True)
            for p in problems[shown:10]:
                print(p, file=sys.stderr, flush=True)
            shown = len(problems)
    if problems:
        print(f"{len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


sys.exit(main())
