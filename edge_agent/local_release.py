"""A release applied on the device itself (`edge-agent apply`), for as long as no hub says otherwise.

Rules:

1. A bundle, or a manifest whose images are here, is taken whole or not at all; then it is desired like the hub's, goes
   through the same release machine, and survives restarts.
2. Its number is negative, and new each time: no desired `$version` of a hub is.
3. When the hub is connected and desires a valid deployment, that wins; what was applied here is then only reported.
4. Module identities get a key of the device's choice, which the hub learns when it is there again.

`local.json`: `number`, `digest`, `source` (name of the file), `appliedAt`, and while it is in force `agent` and `hub`, the desired
properties of `$edgeAgent` and `$edgeHub`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from edge_agent.desired import Verdict, read_desired
from edge_agent.release import ReleaseRecord
from edge_agent.store import Store, StoreError
from edge_containers.runtime import ModuleRuntime
from edge_contracts.errors import AgentError, ContractError, EdgewrightError
from edge_contracts.manifest import DeploymentManifest

FILE = "local.json"
MANIFEST_LIMIT_BYTES = 1 << 20
"""Far above the 32 KB that a hub takes for each twin."""


class LocalReleaseError(AgentError):
    """A file that cannot become a release on this device; nothing changed."""

    code = "local-release"


@dataclass(frozen=True, slots=True)
class LocalRelease:
    """See the module; `agent` is None once the hub's desired state has taken over."""

    number: int
    digest: str
    source: str
    applied_at: str
    agent: Mapping[str, Any] | None
    hub: Mapping[str, Any] | None

    @property
    def is_active(self) -> bool:
        """Whether this is what the device is to run."""
        return self.agent is not None

    def verdict(self) -> Verdict:
        """What it asks for, as if a hub had."""
        return read_desired(self.agent or {}, self.number)

    def ended(self) -> LocalRelease:
        """The hub's desired state has taken over; what it was is still reported."""
        return replace(self, agent=None, hub=None)

    def report(self) -> dict[str, Any]:
        """The member `localRelease` of the reported properties."""
        return {
            "digest": self.digest,
            "source": self.source,
            "appliedAt": self.applied_at,
            "active": self.is_active,
        }


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A file whose images are all on this device."""

    source: str
    manifest: DeploymentManifest


def take_file(path: Path, runtime: ModuleRuntime) -> TakenFile:
    """Read a bundle or a manifest; a bundle's images are on the device afterwards.

    Raises:
        LocalReleaseError: there is no such file, it is no manifest, or an image is missing.
        ContainerError: the bundle is damaged or for another machine; nothing of it was kept.
    """
    with _open(path) as file:
        start = file.read(1)
        file.seek(0)
        if start in (b"{", b" ", b"\n", b"\r", b"\t"):
            return TakenFile(path.name, _local_manifest(file, path, runtime))
        bundle = runtime.load_bundle(file, str(path))
    return TakenFile(path.name, bundle.manifest)


def make_release(taken: TakenFile, record: ReleaseRecord, before: LocalRelease | None) -> LocalRelease:
    """The release of a file.

    Raises:
        LocalReleaseError: the agent would refuse it from a hub, too.
    """
    content = taken.manifest.dump()["modulesContent"]
    sections = {name: content[name]["properties.desired"] for name in ("$edgeAgent", "$edgeHub")}
    number = min([0, before.number if before else 0, *_numbers(record)]) - 1
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    local = LocalRelease(number, "", taken.source, now, sections["$edgeAgent"], sections["$edgeHub"])
    verdict = local.verdict()
    if verdict.release is None:
        raise LocalReleaseError(f"{taken.source}: {verdict.description}", where=taken.source)
    return replace(local, digest=verdict.release.digest)


def load_local(store: Store) -> LocalRelease | None:
    """What was applied here last; None if nothing was.

    Raises:
        StoreError: the file cannot be read.
    """
    document = store.read(FILE)
    if document is None:
        return None
    try:
        return LocalRelease(
            int(document["number"]),
            str(document["digest"]),
            str(document["source"]),
            str(document["appliedAt"]),
            document["agent"],
            document["hub"],
        )
    except (KeyError, TypeError, ValueError) as error:
        where = str(store.root / FILE)
        raise StoreError(f"{where} is not a local release: {error!r}", where=where) from error


def save_local(store: Store, local: LocalRelease) -> None:
    """Make it what the next start finds.

    Raises:
        StoreError: the disk refuses; what was there stays.
    """
    document = {
        "number": local.number,
        "digest": local.digest,
        "source": local.source,
        "appliedAt": local.applied_at,
        "agent": local.agent,
        "hub": local.hub,
    }
    store.write(FILE, document)


def _numbers(record: ReleaseRecord) -> list[int]:
    releases = [record.committed, record.previous, record.attempt.release if record.attempt else None]
    return [*(each.number for each in releases if each), *(each.number for each in record.results)]


def _open(path: Path) -> BinaryIO:
    try:
        # Not to wait for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LocalReleaseError(f"{path} cannot be read: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LocalReleaseError(f"{path} must be a file: a bundle, or a deployment manifest", where=str(path))
    return os.fdopen(descriptor, "rb")


def _local_manifest(file: BinaryIO, path: Path, runtime: ModuleRuntime) -> DeploymentManifest:
    data = file.read(MANIFEST_LIMIT_BYTES + 1)
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise LocalReleaseError(
            f"{path} must be a deployment manifest of at most {MANIFEST_LIMIT_BYTES} bytes", where=str(path)
        )
    try:
        manifest = DeploymentManifest.parse(data)
    except ContractError as error:
        raise LocalReleaseError(
            f"{path} is no deployment manifest: {error.message}", where=str(path)
        ) from error
    missing = [
        str(module.image) for module in manifest.modules.values() if not _is_here(module.image, runtime)
    ]
    if missing:
        raise LocalReleaseError(
            f"{path}: not on this device: {', '.join(sorted(set(missing)))}; a bundle brings its images along",
            where=str(path),
            next_command="edgewright bundle create MANIFEST -o FILE",
        )
    return manifest


def _is_here(image: Any, runtime: ModuleRuntime) -> bool:
    try:
        return runtime.has_image(image)
    except EdgewrightError:  # not given by digest
        return False
