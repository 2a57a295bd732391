"""tests/test_fuzz.py [MUTATIONS [SEED]] - every fuzz target of tests/fuzz takes its seeds, and 2000
mutations of them. tests/fuzz/fuzz.sh looks for longer, and better, where clang is."""
import glob
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "fuzz"))
sys.dont_write_bytecode = True
import corpus  # noqa: E402

build = os.path.join(os.environ.get("FP8_BINARY_DIR", "build/test"), "tests")
mutations, seed = (sys.argv[1:] + ["2000", "1"])[:2] if len(sys.argv) < 3 else sys.argv[1:3]
failures = 0
with tempfile.TemporaryDirectory() as out:
    corpus.write(out)
    for name in corpus.TARGETS:
        program = os.path.join(build, f"fuzz_{name}")
        if not os.path.exists(program):
            print(f"{program} is not built", file=sys.stderr)
            failures += 1
            continue
        environment = {**os.environ}
        environment["ASAN_OPTIONS"] = "detect_leaks=1:allocator_may_return_null=1"
        done = subprocess.run([program, mutations, seed, *sorted(glob.glob(f"{out}/{name}/*"))],
                              env=environment, capture_output=True, text=True, errors="replace")
        print(f"{name}: exit code {done.returncode}: {done.stdout.strip()}")
        if done.returncode != 0:
            print(done.stderr[-4000:], file=sys.stderr)
            failures += 1
sys.exit(1 if failures else 0)
