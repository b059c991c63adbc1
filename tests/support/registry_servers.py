"""Registries to run one behavioural suite against: each starts on loopback, with the same users."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from registry_double import RegistryDouble, User

from iot_hub.registry import RegistryGrant, make_registry

USER, PASSWORD = "pusher", "correct-horse"
START_S = 20.0


@dataclass(frozen=True)
class RunningRegistry:
    """`double` is there when it is one, for switching faults on."""

    address: str
    double: RegistryDouble | None = None


@contextmanager
def double_registry(auth: str) -> Iterator[RunningRegistry]:
    with RegistryDouble(auth=auth, users={USER: User(PASSWORD)}) as double:
        yield RunningRegistry(double.address, double)


@contextmanager
def debian_registry(folder: Path) -> Iterator[RunningRegistry]:
    """Debian's `docker-registry` (the reference implementation, 2.8), with htpasswd users."""
    server, htpasswd = shutil.which("docker-registry"), shutil.which("htpasswd")
    if server is None or htpasswd is None:
        pytest.skip("needs docker-registry and htpasswd: apt-get install docker-registry apache2-utils")
    port = free_port()
    # Cost 5: bcrypt is computed on every request, and 12 would take a quarter second each.
    users = subprocess.run(
        [htpasswd, "-iBn", "-C", "5", USER],
        input=PASSWORD,
        text=True,
        capture_output=True,
        check=True,
        timeout=10,
    )
    (folder / "htpasswd").write_text(users.stdout)
    (folder / "config.yml").write_text(_DEBIAN_CONFIG.format(folder=folder, port=port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        wait_for_port(port)
        yield RunningRegistry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


_DEBIAN_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
"""


def free_port() -> int:
    """A port nobody listens on now, for servers that cannot take port 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"no server on port {port} after {START_S:g} s")


@contextmanager
def embedded_registry(folder: Path) -> Iterator[RunningRegistry]:
    """The hub's registry, as the hub serves it."""
    app = make_registry(folder, _OneUser())
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            port = listener.getsockname()[1]
            wait_for_port(port)
            yield RunningRegistry(f"127.0.0.1:{port}")
        finally:
            server.should_exit = True
            thread.join(START_S)


class _OneUser:
    def check(self, username: str, password: str) -> RegistryGrant | None:
        is_known = (username, password) == (USER, PASSWORD)
        return RegistryGrant(username, ("*",), frozenset({"pull", "push"})) if is_known else None
