"""A scoring server on this machine for the author of a script: the image's own runtime, replaced while it serves.

The listening socket is ours, each server (`python -m scoring_runtime`) inherits it. A new one starts beside the old one,
held back (EDGEWRIGHT_HOLD) until `init()` has returned; then it serves and the old one finishes what it has accepted, so
that no request is refused. A new one that cannot start is gone, and the old one serves on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_contracts.errors import PublishError
from publisher.processes import module_command

_POLL_S = 0.1
# The runtime gives its requests 10 s to finish (scoring_runtime.server.DRAIN_S).
STOP_TIMEOUT_S = 12.0
_BACKLOG = 2048
_ASK = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class LocalServerError(PublishError):
    """The local scoring server cannot start, or has ended by itself."""

    code = "local-server"


class LocalServer:
    """At most one serving process at a time on one address."""

    def __init__(self, arguments: Sequence[str], cwd: Path, host: str, port: int) -> None:
        """Take the address; nothing is started yet.

        Raises:
            LocalServerError: the address cannot be had.
        """
        self._arguments = tuple(arguments)
        self._cwd = cwd
        self._socket = _listening(host, port)
        self._serving: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`http://host:port`."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def exit_code(self) -> int | None:
        """Of the serving process, once it has ended by itself."""
        return None if self._serving is None else self._serving.poll()

    def replace(self, *, is_outdated: Callable[[], bool]) -> bool:
        """Start a new process; when it is ready let it serve, and end the old one.

        Returns:
            Whether the new one serves; otherwise the old one does, as before.
        """
        with _listening("127.0.0.1", 0) as health:
            new = self._start(health)
            try:
                ready = _wait_ready(new, health, is_outdated)
            except BaseException:
                _end(new)
                raise
        if not ready:
            _end(new)
            return False
        new.send_signal(signal.SIGUSR1)
        old, self._serving = self._serving, new
        if old is not None:
            _end(old)
        return True

    def close(self) -> None:
        """End what serves, after the requests it has accepted, and give the address back."""
        self._socket.close()
        if self._serving is not None:
            _end(self._serving)

    def _start(self, health: socket.socket) -> subprocess.Popen[bytes]:
        variables = {
            "EDGEWRIGHT_HTTP_FD": str(self._socket.fileno()),
            "EDGEWRIGHT_HEALTH_FD": str(health.fileno()),
            "EDGEWRIGHT_HOLD": "1",
            # Compiled modules are recognised by seconds and size, too coarse for two saves in a row.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            module_command("scoring_runtime", *self._arguments),
            env={**os.environ, **variables},
            cwd=self._cwd,
            pass_fds=[self._socket.fileno(), health.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is ours: it must not cut a request short
        )


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LocalServerError(f"cannot listen on {host}: {error.strerror}", where=host) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise LocalServerError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port",
            where=f"{host}:{port}",
        ) from error
    return sock


def _wait_ready(
    process: subprocess.Popen[bytes], health: socket.socket, is_outdated: Callable[[], bool]
) -> bool:
    """Whether the process says so; False when it has ended or its files have changed meanwhile.

    One request is enough: the health socket is served only once `init()` has returned, and holds it until then.
    """
    with socket.create_connection(health.getsockname(), timeout=_POLL_S) as asking:
        asking.sendall(_ASK)
        while process.poll() is None and not is_outdated():
            if select.select([asking], [], [], _POLL_S)[0]:
                return asking.recv(64).startswith(b"HTTP/1.1 200 ")
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
