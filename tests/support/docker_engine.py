"""A Docker engine of its own for tests: Debian's `dockerd`, in a temporary folder, on a unix socket.

Needs root, `docker.io` and `iproute2` (scripts/test-tools); without them its tests are skipped with the reason.
Nothing of an engine that already runs here is touched: data, sockets, containerd and bridge are this one's own.

    def test_something(docker_engine):            # session fixture of tests/conftest.py, started once (about 1 s)
        client = docker.DockerClient(base_url=docker_engine.address, timeout=60)
        docker_engine.run("load", "-i", "image.tar")    # Debian's command line, for what the SDK is not to prove

Published ports (`-p 127.0.0.1:P:5001`) work on loopback by Docker's proxy, and so does `network_mode="host"`. Containers
reach nothing outside this machine: no forwarding, no masquerading, no iptables rule is made.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 30.0
STOP_S = 20.0
COMMAND_S = 120.0


@dataclass(frozen=True)
class DockerEngine:
    """A running engine; `log` is dockerd's."""

    address: str
    folder: Path
    log: Path

    def run(self, *arguments: str, stdin: bytes | None = None, timeout_s: float = COMMAND_S) -> str:
        """Run the `docker` command line; its output without the last line end."""
        done = subprocess.run(
            ["docker", *arguments],
            env=os.environ | {"DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self.folder)},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, (arguments, done.stderr.decode(errors="replace"))
        return done.stdout.decode().strip()


@contextmanager
def running_docker_engine() -> Iterator[DockerEngine]:
    """Start the engine, and stop it with everything in it."""
    missing = [tool for tool in ("dockerd", "docker", "ip", "setpriv") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and docker.io (absent: {', '.join(missing) or 'root'}): scripts/test-tools")
    # A short path of its own: a unix socket's has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ew-docker-"))
    try:
        with _bridge() as bridge, _daemon(folder, bridge) as engine:
            yield engine
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder)


@contextmanager
def _bridge() -> Iterator[str]:
    """A bridge of its own: Docker's would be shared with any other engine here."""
    name = f"ew{secrets.token_hex(4)}"
    address = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}.1/24"
    _ip("link", "add", name, "type", "bridge")
    try:
        _ip("addr", "add", address, "dev", name)
        _ip("link", "set", name, "up")
        yield name
    finally:
        _ip("link", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@contextmanager
def _daemon(folder: Path, bridge: str) -> Iterator[DockerEngine]:
    (folder / "daemon.json").write_text("{}")
    engine = DockerEngine(f"unix://{folder}/docker.sock", folder, folder / "log")
    options = {
        "config-file": folder / "daemon.json",
        "data-root": folder / "data",
        "exec-root": folder / "exec",
        "pidfile": folder / "pid",
        "host": engine.address,
        "bridge": bridge,
        "shutdown-timeout": 2,
    }
    off = ("iptables", "ip6tables", "ip-forward", "ip-masq")
    arguments = [
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--{name}=false" for name in off),
    ]
    # Its containerd and the containers go with it; setpriv ends it when the tests are killed.
    with engine.log.open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "dockerd", *arguments], stdout=log, stderr=log
        )
    try:
        _wait_until_ready(engine, process)
        yield engine
        # A shell as process 1 is deaf to SIGTERM, and the engine would wait 10 s for it.
        if containers := engine.run("ps", "--all", "--quiet").split():
            engine.run("rm", "--force", *containers)
    finally:
        _stop(process)


def _wait_until_ready(engine: DockerEngine, process: subprocess.Popen[bytes]) -> None:
    socket = Path(engine.address.removeprefix("unix://"))
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        # The socket appears when the engine answers on it.
        if socket.exists():
            engine.run("version", timeout_s=START_S)
            return
        time.sleep(0.05)
    tail = engine.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"dockerd did not start within {START_S:g} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)


def _unmount_below(folder: Path) -> None:
    """What a killed engine left mounted, the deepest first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True, timeout=10)
