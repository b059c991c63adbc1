"""Background processes of a workspace: recognised by id and start time, ended politely, then firmly.

What is known of one is a JSON record in `.edgewright/run/`, so that a later command finds it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError
from publisher.private_file import write_private

POLL_S = 0.05
KILL_TIMEOUT_S = 5.0


class ProcessRecordError(PublishError):
    """A record in `.edgewright/run/` cannot be read, so its process cannot be told."""

    code = "process-record"


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
    """Signal the process and wait for its end, after `timeout_s` by SIGKILL; False when it runs even then."""
    return _end(process, stop_signal, timeout_s) or _end(process, signal.SIGKILL, KILL_TIMEOUT_S)


def module_command(module: str, *arguments: str) -> list[str]:
    """How to run a module of ours: by this interpreter, whatever files of the user's lie in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def write_record(path: Path, process: ProcessId, **more: object) -> None:
    """Keep what is known of a process."""
    write_private(path, json.dumps({"process": asdict(process), **more}, indent=1) + "\n")


def read_record(path: Path) -> tuple[ProcessId, Mapping[str, Any]] | None:
    """What `write_record` kept, None if there is nothing.

    Raises:
        ProcessRecordError: it is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        process = ProcessId(**record["process"])
        if not (isinstance(process.pid, int) and isinstance(process.start_ticks, int)):
            raise TypeError("pid and start_ticks must be integers")
        return process, record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ProcessRecordError:
    """The error for a record that is not as `write_record` wrote it."""
    return ProcessRecordError(
        f"{path} is damaged ({error}), so the process it is about cannot be found: end that by hand if it "
        "runs, and remove the file",
        where=str(path),
        next_command=f"rm {path}",
    )


def _end(process: ProcessId, number: signal.Signals, timeout_s: float) -> bool:
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
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
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
