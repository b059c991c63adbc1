"""The agent's files: each is replaced whole, by write, fsync, rename, fsync of the folder.

| file                | what                                                                    |
| ------------------- | ----------------------------------------------------------------------- |
| release.json        | committed and previous release, the attempt, quarantine, results        |
| desired-agent.json  | `$edgeAgent`'s last received desired properties with their `$version`   |
| desired-hub.json    | the same of `$edgeHub`                                                  |
| local.json          | what `edge-agent apply` took on the device itself                       |
| identities.json     | keys of the device's module identities                                  |
| lock                | held by the running agent                                               |

All are mode 0600 (desired properties hold registry credentials). The folder is 0711: in the sandbox tiers without
mounts a module's own user passes through it to its layers. A release record that cannot be
read is an error that names it, never an empty start: an agent that forgot its release would stop every module.

Failpoints: `write:<file>:before`, `:written` (temporary file complete, not yet renamed) and `:renamed`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.release import (
    Attempt,
    Failure,
    ModuleGoal,
    Phase,
    Quarantined,
    Release,
    ReleaseRecord,
    Terminal,
)
from edge_contracts.errors import AgentError
from edge_contracts.release import ErrorClass, ReleaseResult

Failpoint = Callable[[str], None]


def no_failpoint(name: str) -> None:
    """What runs outside of fault tests."""


class StoreError(AgentError):
    """A file of the state folder cannot be read or written."""

    code = "state"


class AlreadyRunningError(AgentError):
    """Another agent works in this state folder."""

    code = "already-running"


class Store:
    """The state folder of one agent."""

    def __init__(self, root: Path, failpoint: Failpoint = no_failpoint) -> None:
        self.root = root
        self._failpoint = failpoint

    def prepare(self) -> None:
        """Make the folder, which others may pass through but not read.

        Raises:
            StoreError: it cannot be made or used.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o711)
        except OSError as error:
            raise _unusable(self.root, "make", error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            AlreadyRunningError: another process holds it; the message names its pid.
        """
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, self.root)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            os.close(descriptor)

    def load_record(self) -> ReleaseRecord:
        """The release record; an empty one on a new device."""
        document = self.read("release.json")
        if document is None:
            return ReleaseRecord()
        try:
            return record_from_document(document)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.root / 'release.json'} is not a release record: {error!r}",
                where=str(self.root / "release.json"),
                next_command="edge-agent check",
            ) from error

    def save_record(self, record: ReleaseRecord) -> None:
        """Make `record` the one that the next start finds."""
        self.write("release.json", record_to_document(record))

    def read(self, name: str) -> Any:
        """The JSON document of a file; None where there is no file.

        Raises:
            StoreError: it cannot be read or is not JSON.
        """
        path = self.root / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _unusable(path, "read", error) from error

    def write(self, name: str, document: Any) -> None:
        """Replace a file by `document`; a crash leaves the old file or the new one, whole.

        Raises:
            StoreError: the disk refuses; the old file is untouched.
        """
        path, temporary = self.root / name, self.root / f".{name}.new"
        self._failpoint(f"write:{name}:before")
        try:
            _write_private(temporary, json.dumps(document, sort_keys=True).encode())
            self._failpoint(f"write:{name}:written")
            temporary.replace(path)
            _sync_folder(self.root)
        except OSError as error:
            raise _unusable(path, "write", error) from error
        self._failpoint(f"write:{name}:renamed")


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        raise AlreadyRunningError(
            f"another edge-agent (pid {holder}) works in {root}; one agent per state_dir",
            where=str(root),
            next_command="edge-agent status",
        ) from error


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, verb: str, error: Exception) -> StoreError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(
        f"cannot {verb} {path}: {reason}",
        where=str(path),
        temporary=isinstance(error, OSError),
        next_command="edge-agent check",
    )


def record_to_document(record: ReleaseRecord) -> dict[str, Any]:
    """The record as JSON values."""
    attempt = record.attempt
    return {
        "format": 1,
        "committed": _release_document(record.committed),
        "previous": _release_document(record.previous),
        "attempt": attempt
        and {
            "release": _release_document(attempt.release),
            "phase": attempt.phase.value,
            "failure": _failure_document(attempt.failure),
        },
        "quarantine": [
            {"digest": entry.digest, "failure": _failure_document(entry.failure), "number": entry.number}
            for entry in record.quarantine
        ],
        "results": [
            {
                "digest": terminal.digest,
                "number": terminal.number,
                "result": terminal.result.value,
                "errorClass": terminal.error_class and terminal.error_class.value,
                "description": terminal.description,
            }
            for terminal in record.results
        ],
    }


def record_from_document(document: Mapping[str, Any]) -> ReleaseRecord:
    """The inverse of `record_to_document`."""
    if document["format"] != 1:
        raise ValueError(f"format must be 1, not {document['format']!r}")
    attempt = document["attempt"]
    return ReleaseRecord(
        committed=_release(document["committed"]),
        previous=_release(document["previous"]),
        attempt=attempt
        and Attempt(
            _whole_release(attempt["release"]), Phase(attempt["phase"]), _failure(attempt["failure"])
        ),
        quarantine=tuple(_quarantined(entry) for entry in document["quarantine"]),
        results=tuple(_terminal(entry) for entry in document["results"]),
    )


def _release_document(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {
        "digest": release.digest,
        "number": release.number,
        "document": release.document,
        "modules": [
            {
                "name": goal.name,
                "instance": goal.instance_id,
                "image": goal.image,
                "running": goal.running,
                "restartPolicy": goal.restart_policy,
                "startupOrder": goal.startup_order,
            }
            for goal in release.modules
        ],
    }


def _release(document: Mapping[str, Any] | None) -> Release | None:
    return None if document is None else _whole_release(document)


def _whole_release(document: Mapping[str, Any]) -> Release:
    modules = tuple(
        ModuleGoal(
            name=entry["name"],
            instance_id=entry["instance"],
            image=entry["image"],
            running=entry["running"],
            restart_policy=entry["restartPolicy"],
            startup_order=entry["startupOrder"],
        )
        for entry in document["modules"]
    )
    return Release(document["digest"], document["number"], modules, document["document"])


def _failure_document(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"errorClass": failure.error_class.value, "description": failure.description}


def _failure(document: Mapping[str, Any] | None) -> Failure | None:
    return None if document is None else _whole_failure(document)


def _whole_failure(document: Mapping[str, Any]) -> Failure:
    return Failure(ErrorClass(document["errorClass"]), document["description"])


def _quarantined(document: Mapping[str, Any]) -> Quarantined:
    return Quarantined(document["digest"], _whole_failure(document["failure"]), document["number"])


def _terminal(document: Mapping[str, Any]) -> Terminal:
    error = document["errorClass"]
    return Terminal(
        digest=document["digest"],
        number=document["number"],
        result=ReleaseResult(document["result"]),
        error_class=ErrorClass(error) if error else None,
        description=document["description"],
    )
