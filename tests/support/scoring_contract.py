"""A scoring server behind a command line, ours or another one, for black-box tests.

EDGEWRIGHT_CONTRACT_SERVER is the command, with `{script}`, `{port}` and `{python}` filled in; ours when it is not set. For
Azure ML's own: `EDGEWRIGHT_CONTRACT_SERVER="azmlinfsrv --entry_script {script} --port {port}"`.
"""

from __future__ import annotations

import http.client
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from scoring_server import TIMEOUT_S, Reply, environment

OURS = "{python} -m scoring_runtime --entry-script {script} --port {port}"
COMMAND = os.environ.get("EDGEWRIGHT_CONTRACT_SERVER", OURS)
IS_OURS = COMMAND == OURS
# The interpreter that runs the scripts; another one may have packages that this one lacks.
PYTHON = os.environ.get("EDGEWRIGHT_CONTRACT_PYTHON", sys.executable)
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Answer(Reply):
    """With every header line, since some may come more than once."""

    lines: tuple[tuple[str, str], ...] = ()


def has_package(name: str) -> bool:
    """Whether scripts can import it."""
    return subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


def shims_for_others(folder: Path) -> dict[str, str]:
    """Variables that give another server what this one has of old packages; nothing for this one."""
    if IS_OURS:
        return {}
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("from scoring_runtime import old_imports\nold_imports.install()\n")
    return {"PYTHONPATH": f"{hook}:{ROOT}:{ROOT / 'scoring_runtime/shims'}"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ContractServer:
    """One script behind one server process."""

    def __init__(self, folder: Path, script: str, *, others_options: str = "", **variables: str) -> None:
        """`others_options` are for a server that is not ours and lacks a variable for what the test needs."""
        self.folder = folder
        self.port = free_port()
        (folder / "score.py").write_text(dedent(script))
        self._log = folder / "server.log"
        command = COMMAND.format(python=PYTHON, script="score.py", port=self.port)
        command += "" if IS_OURS else f" {others_options}"
        # Both know the script's folder as the working directory; PYTHONPATH finds our runtime in another interpreter.
        path = {} if sys.executable == PYTHON else {"PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                shlex.split(command), cwd=folder, env=environment(**path | variables), stdout=log, stderr=log
            )

    def __enter__(self) -> ContractServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(TIMEOUT_S)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def until_healthy(self) -> ContractServer:
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while True:
            assert self.process.poll() is None, self.log
            try:
                if self.call("GET", "/").status == 200:
                    return self
            except OSError:
                assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def until_logged(self, holds: Callable[[str], object]) -> None:
        deadline = time.monotonic() + 5
        while not holds(self.log):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def until_ended(self) -> int:
        """Of a start that must fail."""
        return self.process.wait(3 * TIMEOUT_S)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            lines = tuple((name.lower(), value) for name, value in response.getheaders())
            return Answer(response.status, dict(lines), response.read(), lines)
        finally:
            connection.close()
