"""A real scoring runtime process, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0
# What the developer's or the CI's shell may hold, and a module must not see by chance.
_PREFIXES = ("EDGEWRIGHT_", "AZUREML_", "AML_", "IOTEDGE_", "SERVICE_")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["message"])


def call(
    address: tuple[str, int],
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def listen() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.set_inheritable(True)
    return sock


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
    return {**kept, **variables}


class ScoringServer:
    """`python -m scoring_runtime` with inherited sockets, as the module runtime starts it."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        public: socket.socket | None = None,
        beneath: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self._public = public or listen()
        self._health = listen()
        self.folder = folder
        self._log = folder / f"scoring-{id(self)}.log"
        variables |= {
            "EDGEWRIGHT_HTTP_FD": str(self._public.fileno()),
            "EDGEWRIGHT_HEALTH_FD": str(self._health.fileno()),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*beneath, sys.executable, "-m", "scoring_runtime", *arguments],
                env=environment(**variables),
                cwd=folder,
                pass_fds=[self._public.fileno(), self._health.fileno()],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._health.close()
        self._public.close()

    @property
    def public(self) -> socket.socket:
        """Another descriptor of the public socket, for a server that takes over.

        Not `dup()`: it makes the socket blocking, for every process that has it.
        """
        return socket.socket(fileno=os.dup(self._public.fileno()))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._public.getsockname()
        return str(host), int(port)

    @property
    def health_address(self) -> tuple[str, int]:
        host, port = self._health.getsockname()
        return str(host), int(port)

    @property
    def workers(self) -> list[int]:
        """Process ids beneath the supervisor."""
        return children(self.process.pid)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, **headers: str) -> Reply:
        return call(self.address, "GET", path, headers=headers)

    def health(self, path: str = "/ready") -> Reply:
        return call(self.health_address, "GET", path)

    def score(self, document: Any, **headers: str) -> Reply:
        return self.post(json.dumps(document).encode(), **headers)

    def post(self, body: bytes, **headers: str) -> Reply:
        return call(self.address, "POST", "/score", body, {"content-type": "application/json", **headers})

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


def run_to_end(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return subprocess.run(
        [sys.executable, "-m", "scoring_runtime", *arguments],
        env=environment(**variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
