"""tests/test_crash.py [KILLS] - what may happen to a command from outside: kill -9 at any moment
(20 of `run` and `convert`; a number as argument for more), a full disk, folders that may not be
written or read, a model's file cut off while it is read, two processes on one output. The output is
the old one or the whole new one, the next command works, and nothing else stays."""
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

FP8CALIB = os.path.abspath(os.environ.get("FP8CALIB", "build/test/fp8calib"))
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.abspath(os.environ.get("FP8_SOURCE_DIR") or os.path.dirname(HERE))
NOBODY = 65534
SPLIT = ["--max-shard-size", "400KB"]
COMMANDS = {
    "run": ["--samples", "12", "--batch", "1", "--seq", "64", "--no-eval", "--device", "cpu",
            "--threads", "1", *SPLIT],
    "convert": ["--device", "cpu", "--threads", "1", *SPLIT],
}
problems = []


def complain(case, text):
    problems.append(f"[{case}] {text}")
    print(problems[-1], file=sys.stderr)


def tree(path):
    """A digest of a folder's names and bytes, None where there is none."""
    if not os.path.isdir(path):
        return None
    h = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        with open(os.path.join(path, name), "rb") as f:
            h.update(f"{name}\0{os.fstat(f.fileno()).st_size}\0".encode() + f.read())
    return h.hexdigest()


def start(command, *more, model="model", **how):
    line = [FP8CALIB, command, model, "-o", "out", *COMMANDS[command], "--quiet", *more]
    return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **how)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def fails(case, process, code, text):
    """The command ends with this exit code and one line that says `text`."""
    got, out, err = finish(process)
    if got != code:
        complain(case, f"exit code {got}, want {code}: {err[-300:]}")
    if err.count("\n") != 1 or not err.startswith("fp8calib: ") or text not in err:
        complain(case, f"stderr is not one line with '{text}': {err[-300:]!r}")
    if out:
        complain(case, f"something on stdout: {out[:80]!r}")


def works(case, process):
    got, _, err = finish(process)
    if got != 0:
        complain(case, f"exit code {got}: {err[-300:]}")


def only(case, *names):
    left = sorted(os.listdir("."))
    if left != sorted(names):
        complain(case, f"in the folder: {left}, expected {sorted(names)}")


def stopped(process, there):
    """Stops the process where there() is true, and still is then; False: it came to its end."""
    while process.poll() is None:
        if there():
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if there():
                return True
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    return False


def wait_for(case, process, there):
    if stopped(process, there):
        return True
    complain(case, "came to its end before it could be stopped")
    return False


def clear(keep=("model",)):
    for name in os.listdir("."):
        if name not in keep:
            shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def as_nobody():
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def kills(count):
    rng = random.Random(20261121)
    fresh, seconds = {}, {}
    for command in COMMANDS:
        began = time.monotonic()
        works(command, start(command))
        seconds[command] = time.monotonic() - began
        fresh[command] = tree("out")
        only(command, "model", "out")
        clear()
    os.mkdir("other")
    with open("model/model.safetensors", "rb") as f, open("other/model.safetensors", "wb") as g:
        g.write(f.read())
    old = tree("other")
    seen = {"nothing": 0, "old": 0, "new": 0}
    for i in range(count):
        command, over = rng.choice(list(COMMANDS)), rng.random() < 0.5
        wait = rng.random() * 1.1 * seconds[command]
        case = f"kill {i}: {command} {'over an output ' if over else ''}after {wait:.3f} s"
        if over:
            shutil.copytree("other", "out")
        process = start(command, *(["--force"] if over else []))
        time.sleep(wait)
        process.kill()
        process.communicate()
        now = tree("out")
        if now not in (fresh[command], old if over else None):
            complain(case, "the output is neither the old one nor the new one")
        seen["new" if now == fresh[command] else "old" if over else "nothing"] += 1
        resume = ["--resume"] if command == "run" and rng.random() < 0.5 else []
        works(case, start(command, "--force", *resume))
        if tree("out") != fresh[command]:
            complain(case, "the next command writes something else")
        only(case, "model", "other", "out")
        clear(keep=("model", "other"))
    print(f"{count} kills: {seen}")
    shutil.rmtree("other")


def full_disk():
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))
    for command in COMMANDS:
        fails(f"{command}: limit of a file's size", start(command, preexec_fn=limit), 1,
              "File too large")
        if os.path.exists("out.calibration.safetensors"):
            os.remove("out.calibration.safetensors")  # what --resume goes on from
        only(command, "model")
    os.mkdir("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", "disk"]
    mounted = os.getuid() == 0 and subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    if not mounted:
        print("no small file system can be mounted here: not tried")
    for command in COMMANDS if mounted else ():
        case = f"{command}: full disk"
        fails(case, start(command, "-o", "disk/out"), 1, "No space left on device")
        left = [n for n in os.listdir("disk") if n != "out.calibration.safetensors"]
        if left:
            complain(case, f"stays on the disk: {left}")
    if mounted:
        subprocess.run(["umount", "disk"], check=True)
    clear()


def permissions():
    for command in COMMANDS:
        os.mkdir("shut", 0o555)
        process = start(command, "-o", "shut/out", preexec_fn=as_nobody)
        fails(f"{command}: read-only folder", process, 1, "shut")
        os.rmdir("shut")
        shutil.copytree("model", "sealed")
        os.chmod("sealed/model.safetensors", 0)
        os.mkdir("open")
        os.chmod("open", 0o777)
        fails(f"{command}: unreadable weights", start(command, "-o", "open/out", model="sealed",
              preexec_fn=as_nobody), 1, "sealed/model.safetensors: cannot open: Permission denied")
        if os.listdir("open"):
            complain(command, f"left behind: {os.listdir('open')}")
        clear()


def maps(process, text):
    try:
        with open(f"/proc/{process.pid}/maps") as f:
            return text in f.read()
    except OSError:
        return False


def shrinking():
    for command in COMMANDS:
        for over in (False, True):
            case = f"{command}: cut off while it is read{', over an output' if over else ''}"
            shutil.copytree("model", "cut")
            if over:
                shutil.copytree("model", "out")
            process = start(command, *(["--force"] if over else []), model="cut")
            if wait_for(case, process, lambda: maps(process, "/cut/model.safetensors")):
                os.truncate("cut/model.safetensors", 40000)
                process.send_signal(signal.SIGCONT)
            fails(case, process, 1, "cut/model.safetensors: became shorter")
            if tree("out") != (tree("model") if over else None):
                complain(case, "the output has changed")
            shutil.rmtree("cut")
            if over:
                shutil.rmtree("out")
            if os.path.exists("out.calibration.safetensors"):
                os.remove("out.calibration.safetensors")
            only(case, "model")
            clear()


def locked(path):
    """Whether a process holds a lock on it: that it is there says nothing, it is made before."""
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks") as f:
            return any(f":{inode} " in line for line in f)
    except OSError:
        return False


def start_and_stop(case, command, name):
    """`command`, stopped while it holds a lock on `name`; what is over too soon is tried again."""
    for _ in range(20):
        process = start(command)
        if stopped(process, lambda: locked(name)):
            return process
        finish(process)
        clear()
    complain(case, "20 times at its end before it could be stopped")
    return None


def two_processes():
    for command, name in (("run", "out.lock"), ("convert", "out.fp8-partial")):
        for second in COMMANDS:
            case = f"{second} while {command} writes"
            process = start_and_stop(case, command, name)
            if not process:
                continue
            if command == second or command == "convert":
                fails(case, start(second), 5, "out: another process is writing it")
                if (command, second) == ("convert", "run"):
                    os.remove("out.calibration.safetensors")  # what --resume goes on from
                process.send_signal(signal.SIGCONT)
                works(case, process)
            else:  # one that calibrates finds the output there at its end, and keeps what it has
                works(case, start(second))
                whole = tree("out")
                process.send_signal(signal.SIGCONT)
                fails(case, process, 5, "out: exists already")
                if tree("out") != whole:
                    complain(case, "the first output has changed")
                works(case, start(command, "--resume", "--force"))
            only(case, "model", "out")
            clear()


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    if not os.access(FP8CALIB, os.X_OK):
        print(f"skipped: no {FP8CALIB}", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)
        os.chdir(work)
        shutil.copytree(os.path.join(SOURCE, "examples/sample-model"), "model")
        os.chmod("model", 0o755)
        kills(count)
        full_disk()
        permissions()
        shrinking()
        two_processes()
        os.chdir("/")
    return 1 if problems else 0


sys.exit(main())
