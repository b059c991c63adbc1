"""What a module finds when it looks around in its sandbox: `python runtime_inspect.py TIER PYTHON` prints it as JSON.

A program of its own, so that it can be run as another user.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from runtime_harness import RuntimeHarness, run_inside

CODE = """
import os, resource, socket, sys

def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return error.strerror

def read(path):
    return attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))

def write(folder):
    return attempt(lambda: open(os.path.join(folder, "edgewright-trial"), "w").close())

def call(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return connection.recv(100).decode()

status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
workload = os.environ["IOTEDGE_WORKLOADURI"].removeprefix("unix://")
result = {
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    "groups": os.getgroups(),
    "status": {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd", "NoNewPrivs")},
    "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "out of memory first": int(open("/proc/self/oom_score_adj").read()),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "reads": {path: read(path) for path in PATHS},
    "writes": {folder: write(folder) for folder in [*FOLDERS, *sys.path[1:], os.environ["AZUREML_MODEL_DIR"], os.getcwd()]},
    "writes to its own": write(os.environ["TMPDIR"]),
    "kill": attempt(lambda: os.kill(STRANGER, 0)),
    "workload path": workload,
    "workload answer": call(workload),
    "semaphore": attempt(lambda: __import__("multiprocessing").Lock()) if SEMAPHORES else "",
    "hostile": {
        "mount": attempt(lambda: os.mkdir("/tmp/m") or check(libc.mount(b"none", b"/tmp/m", b"tmpfs", 0, None))),
        "setuid": attempt(lambda: os.setuid(0)),
        "chroot": attempt(lambda: os.chroot("/tmp")),
    },
}
"""
PRELUDE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""
FOLDERS = [
    "/",
    "/usr",
    "/etc",
    "/var",
    "/opt",
    "/dev",
    "/proc",
    "/run",
    "/home",
    "/root",
    "/sys/devices/system/cpu",
]


def inspect(tier: str, python: Path) -> dict[str, object]:
    """Start a module in the tier as this user, and have it look around."""
    harness = RuntimeHarness(tier, python)
    try:
        (harness.folder / "connection-string").write_text("hush")
        workload = harness.folder / "workload"
        workload.mkdir()
        workload.chmod(0o711)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(workload / "w.sock"))
            (workload / "w.sock").chmod(0o666)
            listener.listen()
            threading.Thread(target=_answer, args=[listener], daemon=True).start()
            env = {"IOTEDGE_WORKLOADURI": "unix:///run/edgewright/w.sock", "SECRET": "hush"}
            module = harness.start(workload_dir=workload, env=env)
            instance = harness.root / "modules" / module.name / module.instance_id
            paths = [
                "/etc/shadow",
                str(harness.root / "ports.json"),
                str(harness.root / "oci" / "index.json"),
                str(harness.root / "images"),
                str(instance / "spec.json"),
                str(instance),
                str(harness.folder / "connection-string"),
                f"/proc/{os.getpid()}/environ",
                "/proc/1/environ",
                "/proc/1/root/etc/shadow",
                "/var/log",
            ]
            values = {
                "PATHS": paths,
                "FOLDERS": [*FOLDERS, str(harness.root), str(instance), str(workload)],
                "STRANGER": os.getpid(),
                "SEMAPHORES": tier == "namespaces",
            }
            head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
            return {"workload dir": str(workload), **run_inside(module, head + PRELUDE + CODE)}
    finally:
        harness.close()


def _answer(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"signed")


if __name__ == "__main__":
    print(json.dumps(inspect(sys.argv[1], Path(sys.argv[2]))))
