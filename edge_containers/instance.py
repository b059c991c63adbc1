"""One started instance on disk and among the processes: its folder, its shim, its end.

    spec.json   what was started (0600: its environment may hold secrets); written by the runtime, never changed
    lock        held (flock) by the runtime while it starts the shim, then by the shim for as long as it lives
    shim.json   process ids with their start times, and the boot they belong to; written when the module runs
    serving     there once a held module was activated
    exit.json   how the module ended; written by the shim
    log, log.1, log.2, control.sock

Whether an instance runs is told by `exit.json`, then by the shim's process: id, start time and boot must all be those
of shim.json. Process ids alone are reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_containers import shim
from edge_containers.runtime import (
    Address,
    ModuleControlError,
    ModuleStartError,
    ModuleStatus,
    RunningModule,
)
from edge_contracts.image_ref import ImageRef

_CONTROL_TIMEOUT_S = 5.0
# Longer than the shim's own wait for the module's exec, so that the shim's answer is what is seen.
_LAUNCH_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 5.0
_KILLED = 128 + signal.SIGKILL
_LOG_NAMES = ("log.2", "log.1", "log")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Instance:
    """An instance's folder and what it says; see the module. Cheap: nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spec(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "spec.json").read_bytes()))

    def launch(self, spec: dict[str, Any], sockets: Iterable[socket.socket]) -> None:
        """Write the spec and start the shim; returns when the module's program has been executed.

        Raises:
            ModuleStartError: it was not; no process is left.
        """
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shim.write_json(str(self.folder / "spec.json"), {**spec, "lock": lock})
            answer = self._run_shim([lock, *(each.fileno() for each in sockets)])
        finally:
            os.close(lock)
        if "error" in answer:
            raise ModuleStartError(
                f"module '{spec['name']}' could not be started: {answer['error']}", where=str(self.folder)
            )

    def _run_shim(self, descriptors: list[int]) -> dict[str, Any]:
        command = [sys.executable, "-I", "-S", str(shim.__file__), str(self.folder / "spec.json")]
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LAUNCH_TIMEOUT_S,
                pass_fds=descriptors,
                start_new_session=True,
                env={},
                check=False,
            )
            return dict(json.loads(run.stdout or b"{}")) or {
                "error": run.stderr.decode(errors="replace").strip()
            }
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return {"error": f"the shim gave no answer: {error}"}

    def processes(self) -> dict[str, Any] | None:
        """shim.json, once the module runs; None before, and of a start that came to nothing."""
        self._await_start()
        try:
            return dict(json.loads((self.folder / "shim.json").read_bytes()))
        except FileNotFoundError:
            return None

    def _await_start(self) -> None:
        """Another process may be half-way through `launch`, or was killed there while its shim goes on."""
        until = time.monotonic() + _LAUNCH_TIMEOUT_S
        while not (self.folder / "shim.json").exists() and self._is_locked() and time.monotonic() < until:
            time.sleep(0.02)

    def _is_locked(self) -> bool:
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def open_shim(self) -> int | None:
        """A pidfd of the shim, for which no id can be mistaken; None when it no longer lives."""
        return self._open_process("shim")

    def _open_process(self, role: str) -> int | None:
        processes = self.processes()
        if processes is None or processes["boot"] != _BOOT_ID.read_text().strip():
            return None
        known = processes[role]
        try:
            descriptor = os.pidfd_open(known["pid"])
        except OSError:
            return None
        # Checked after opening: the descriptor stays with the process it found.
        with contextlib.suppress(OSError):
            if shim.start_time(known["pid"]) == known["startTime"] and not _has_ended(descriptor):
                return descriptor
        os.close(descriptor)
        return None

    def is_alive(self) -> bool:
        descriptor = self.open_shim()
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def state(self) -> RunningModule:
        """What it is now; an end that nobody recorded was a SIGKILL, of the shim or of the machine."""
        spec = self.spec()
        alive = self.is_alive()
        end = self._end(alive)
        processes = self.processes() if end is None else None
        return RunningModule(
            name=spec["name"],
            instance_id=spec["instance"],
            image=ImageRef.parse(spec["image"]),
            pid=None if processes is None else processes["module"]["pid"],
            started_at=spec["startedAt"],
            status=ModuleStatus.RUNNING if end is None else ModuleStatus.EXITED,
            exit_code=None if end is None else end["exitCode"],
            finished_at=None if end is None else end["finishedAt"],
            reason=None if end is None else end["reason"],
            health_address=_address(spec["healthAddress"]),
            public_address=_address(spec["publicAddress"]),
            serving=not spec["hold"] or (self.folder / "serving").exists(),
        )

    def _end(self, alive: bool) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / "exit.json").read_bytes()))
        except FileNotFoundError:
            return None if alive else {"exitCode": _KILLED, "reason": "killed", "finishedAt": None}

    def public_socket(self) -> socket.socket | None:
        """The very listening socket that the running instance has; None if it has none, or has ended.

        Raises:
            ModuleControlError: it has one and does not give it.
        """
        if not self.is_alive():
            return None
        try:
            _, sockets = self._ask({"op": "sockets"})
        except OSError as error:
            if not self.is_alive():
                return None
            raise self._disobeys("hand over its public socket", str(error)) from error
        return sockets[0] if sockets else None

    def activate(self) -> None:
        """Send SIGUSR1, through its parent: no other process can be meant.

        Raises:
            ModuleControlError: it does not handle the signal, has ended, or does not answer.
        """
        try:
            answer, _ = self._ask({"op": "activate"})
        except OSError as error:
            raise self._disobeys("serve its public address", str(error)) from error
        if answer["error"] is not None:
            raise self._disobeys("serve its public address", answer["error"])

    def stop(self, timeout_s: float) -> None:
        """Have it end within `timeout_s` of its own accord, else by force; returns when its processes are gone."""
        descriptor = self.open_shim()
        if descriptor is None:
            return
        try:
            try:
                self._ask({"op": "stop", "timeoutS": timeout_s})
            except OSError:
                _send_signal(descriptor, signal.SIGTERM)
            if not _has_ended(descriptor, timeout_s + _KILL_TIMEOUT_S):
                _send_signal(descriptor, signal.SIGKILL)
                _has_ended(descriptor, _KILL_TIMEOUT_S)
        finally:
            os.close(descriptor)
        self._await_module_gone()

    def await_end(self, timeout_s: float) -> int | None:
        """Its exit code; None when it still runs after `timeout_s`."""
        descriptor = self.open_shim()
        if descriptor is not None:
            _has_ended(descriptor, timeout_s)
            os.close(descriptor)
        end = self._end(self.is_alive())
        return None if end is None else end["exitCode"]

    def _await_module_gone(self) -> None:
        descriptor = self._open_process("module")
        if descriptor is not None:
            _has_ended(descriptor, _KILL_TIMEOUT_S)
            os.close(descriptor)

    def log_text(self) -> str:
        """All that is kept of what it printed."""
        parts = []
        for name in _LOG_NAMES:
            with contextlib.suppress(FileNotFoundError):
                parts.append((self.folder / name).read_bytes())
        return b"".join(parts).decode(errors="replace")

    def delete(self) -> None:
        """Take it off the disk; at no time is half of it there under its name."""
        temporary = self._temporary()
        doomed = self.folder.with_name(f".{self.folder.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        self.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)

    def _temporary(self) -> str | None:
        try:
            temporary: str | None = self.spec()["temporary"]
        except FileNotFoundError:
            return None
        return temporary

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[socket.socket]]:
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(_CONTROL_TIMEOUT_S)
                # By descriptor: a socket's path has at most 107 bytes.
                connection.connect(f"/proc/self/fd/{folder}/control.sock")
            finally:
                os.close(folder)
            connection.sendall(json.dumps(request).encode())
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            raise ConnectionResetError("the shim closed the connection without an answer")
        return dict(json.loads(data)), sockets

    def _disobeys(self, what: str, why: str) -> ModuleControlError:
        module, instance = self.folder.parent.name, self.folder.name
        return ModuleControlError(
            f"module '{module}' (instance {instance}) does not {what}: {why}", where=str(self.folder)
        )


def _address(value: list[Any] | None) -> Address | None:
    return None if value is None else (value[0], value[1])


def _has_ended(process: int, timeout_s: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _send_signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
