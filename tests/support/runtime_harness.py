"""Runtimes under test, and what tests ask of running modules.

A `RuntimeHarness` opens a runtime of one kind on a root of its own, any number of times, and leaves no process behind.
"""

from __future__ import annotations

import ast
import functools
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_images

from edge_containers.interpreter import Interpreter
from edge_containers.process_runtime import LANDLOCK, NAMESPACES, UNISOLATED, ProcessRuntime
from edge_containers.runtime import (
    Address,
    ModuleSpec,
    ModuleStatus,
    RunningModule,
    SandboxUnavailableError,
)
from edge_contracts.image_ref import ImageRef

NOBODY = 65534
TIERS = (NAMESPACES, LANDLOCK, UNISOLATED)
SUPPORT = Path(__file__).parent
PROJECT = SUPPORT.parent.parent
_DEADLINE_S = 20.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = _DEADLINE_S) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def get(address: Address, path: str = "/", timeout_s: float = 10.0) -> str:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return body
    finally:
        connection.close()


def try_get(address: Address | None) -> str | None:
    """What the address answers, or None when nobody does."""
    assert address is not None
    try:
        return get(address)
    except (OSError, http.client.HTTPException):
        return None


def run_inside(module: RunningModule, code: str) -> Any:
    """Run Python in the module; the value of its variable `result`."""
    assert module.health_address is not None
    return ast.literal_eval(get(module.health_address, f"/run?{urllib.parse.urlencode({'code': code})}"))


def is_reachable(python: str) -> bool:
    """Whether the user of modules may start this interpreter: root's own may stand in a folder for root alone."""
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        return subprocess.run([python, "-I", "-S", "-c", ""], check=False, timeout=20, **user).returncode == 0
    except OSError:
        return False


@functools.cache
def find_python(tier: str) -> Path | None:
    """An interpreter that modules may run under in the tier; mounts reach every one."""
    candidates = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    found = [
        path for path in candidates if Path(path).exists() and (tier == NAMESPACES or is_reachable(path))
    ]
    return Path(found[0]) if found else None


@functools.cache
def version_of(python: Path) -> str:
    """The minor version images for this interpreter are labelled with."""
    return Interpreter.ask(python).version


def open_harness(tier: str) -> RuntimeHarness:
    """A harness of the tier, where this machine can have it."""
    python = find_python(tier)
    if python is None:
        pytest.skip(f"no interpreter that uid {NOBODY} may start")
    harness = RuntimeHarness(tier, python)
    try:
        harness.runtime.report()
    except SandboxUnavailableError as error:
        harness.close()
        pytest.skip(error.message)
    return harness


class RuntimeHarness:
    """The process runtime in one tier, on a fresh root."""

    def __init__(self, tier: str, python: Path) -> None:
        self.tier = tier
        self.python = python
        # Not under pytest's folders, which no other user may pass through; in memory, where syncing costs nothing.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="edgewright-test-", dir=memory))
        self.folder.chmod(0o711)
        self.root = self.folder / "runtime"
        self._labels = {"edgewright.python": version_of(python)}
        self._count = 0
        self.runtime = self.open()

    def open(self) -> ProcessRuntime:
        """Another runtime object on the same root, as an agent that was started again has it."""
        return ProcessRuntime(self.root, self.python, tiers=[self.tier], allow_unisolated=True)

    def image(
        self, version: str = "1", *, more_models: tuple[str, ...] = (), **labels: str | None
    ) -> ImageRef:
        """An image ready to start that answers with `version`."""
        digest = runtime_images.put_image(
            self.runtime.store, version, labels={**self._labels, **labels}, more_models=more_models
        )
        self.runtime.prepare(digest)
        return ImageRef("127.0.0.1:5050", "digits", None, digest)

    def image_of(self, module: str) -> ImageRef:
        """An image whose `scoring_runtime` is this text."""
        digest = runtime_images.put_image(self.runtime.store, labels=dict(self._labels), module=module)
        self.runtime.prepare(digest)
        return ImageRef("127.0.0.1:5050", "digits", None, digest)

    def start(
        self, version: str = "1", *, name: str = "scorer", hold: bool = False, **spec: Any
    ) -> RunningModule:
        """Start the image of that version, and wait until it is ready unless it is one that never will be."""
        self._count += 1
        image = spec.pop("image", None) or self.image(version)
        module = self.runtime.start(ModuleSpec(name, image, f"i{self._count}", **spec), hold=hold)
        if version != "crash":
            until(lambda: try_get(module.health_address) == version, f"{version} is ready")
        return module

    def now(self, module: RunningModule) -> RunningModule:
        """The instance as a new runtime object lists it."""
        (found,) = [each for each in self.open().list() if each.instance_id == module.instance_id]
        return found

    def exited(self, module: RunningModule) -> RunningModule:
        """The instance once it has exited."""

        def state() -> RunningModule | None:
            now = self.now(module)
            return now if now.status is ModuleStatus.EXITED else None

        found = until(state, "the module exits")
        assert isinstance(found, RunningModule)
        return found

    def reset(self) -> None:
        """Leave no instance, for the next test; what was found out about the machine and the images stay."""
        for module in self.runtime.list():
            self.runtime.stop(module.name, module.instance_id, 0)
            self.runtime.remove(module.name, module.instance_id)
        self._count = 0

    def close(self) -> None:
        self.reset()
        shutil.rmtree(self.folder)


class Hammer:
    """Requests without a pause, each on a connection of its own, until the block ends."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(get(self.address))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))


def processes_of(root: Path) -> list[int]:
    """Every process of this machine whose command line names the root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in command:
                found.append(int(entry.name))
    return found


def is_running(process: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
