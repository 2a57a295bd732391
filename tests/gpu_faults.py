"""tests/gpu_faults.py ... - tests/test_faults.py for calls of CUDA, cuBLASLt and cuDNN, each of
which fails once and from there on, in `convert` and `run` on the GPU. Skipped in a build without
-DFP8_FAULTS=ON."""
import os
import runpy
import shutil
import subprocess
import sys

found = shutil.which("nvidia-smi")
if not found or subprocess.run([found], capture_output=True, check=False).returncode:
    print("skipped: no GPU", file=sys.stderr)
    sys.exit(77)
os.environ["FP8_FAULT_DEVICE"] = "cuda"
sys.argv[0] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "test_faults.py")
runpy.run_path(sys.argv[0], run_name="__main__")
