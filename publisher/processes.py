"""Background processes of a workspace: recognised by id and start time, ended politely, then firmly."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process; `start_ticks` is field 22 of /proc/PID/stat, which a later process with the same id has not."""

    pid: int
    start_ticks: int


def process_id(pid: int) -> ProcessId:
    """The identity of a process that runs now.

    Raises:
        ProcessLookupError: it does not.
    """
    ticks = _start_ticks(pid)
    if ticks is None:
        raise ProcessLookupError(pid)
    return ProcessId(pid, ticks)


def is_alive(process: ProcessId) -> bool:
    """Whether this very process runs (a zombie does not)."""
    return _start_ticks(process.pid) == process.start_ticks


def terminate(process: ProcessId, *, timeout_s: float, stop_signal: signal.Signals = signal.SIGTERM) -> bool:
    """Signal the process and wait for its end; False when it still runs after `timeout_s`."""
    if is_alive(process):
        os.kill(process.pid, stop_signal)
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        _reap(process.pid)
        time.sleep(POLL_S)
    _reap(process.pid)
    return True


def _start_ticks(pid: int) -> int | None:
    try:
        # The command's name, in parentheses, may hold anything; the fields that count come after it.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _reap(pid: int) -> None:
    """Collect the exit status in case the process is our own child."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
