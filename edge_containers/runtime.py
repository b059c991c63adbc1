"""How modules run: the interface every runtime implements, and its values.

Rules that hold for every runtime:
- A module is named; each of its starts is an instance with an id the caller chose, never used twice. Old and new
  instance of one module may run side by side.
- `pull` leaves an image whole or not at all. An image is named by digest, and only what its digest covers runs.
- `start` returns when the module's program has been executed; whether it is ready is for `health_address` to say.
- With `hold` the instance answers on its health address only, until `activate`: a new version takes no traffic before
  its health gate. Call `activate` when the module is ready.
- Instances do not depend on the caller's life: a new runtime object on the same root lists what still runs, and what
  ended in the meantime with its exit code.
- `stop` on what has ended and `remove` of what does not exist do nothing.

Errors (all `ContainerError`, told apart by `code`):

    ContainerError
    └── RuntimeFailure              code "runtime"
        ├── SandboxUnavailableError   "sandbox"          no permitted tier works on this machine
        ├── IncompatibleImageError    "exec-format"      the image is for another interpreter, C library or machine
        ├── ImageNotPreparedError     "image-not-prepared"  `start` before `pull`
        ├── PortInUseError            "port-in-use"
        ├── ModuleStartError          "start"            the instance could not be started
        ├── NoSuchInstanceError       "no-such-instance"
        └── ModuleControlError        "control"          the instance does not obey
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from edge_contracts.errors import ContainerError
from edge_contracts.image_ref import ImageDigest, ImageRef

if TYPE_CHECKING:
    from edge_containers.bundle import Bundle
    from edge_containers.registry_client import BasicCredentials

Address = tuple[str, int]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class RuntimeFailure(ContainerError):
    """A module, or the machine under it, did not do what was asked."""

    code = "runtime"


class SandboxUnavailableError(RuntimeFailure):
    """No permitted sandbox tier works here; the message says why for each."""

    code = "sandbox"


class IncompatibleImageError(RuntimeFailure):
    """The image cannot run under this machine's interpreter."""

    code = "exec-format"


class ImageNotPreparedError(RuntimeFailure):
    """The image has not been pulled."""

    code = "image-not-prepared"


class PortInUseError(RuntimeFailure):
    """The host port a module asks for belongs to someone else."""

    code = "port-in-use"


class ModuleStartError(RuntimeFailure):
    """The instance could not be started; nothing of it is left."""

    code = "start"


class NoSuchInstanceError(RuntimeFailure):
    """No instance of that name and id."""

    code = "no-such-instance"


class ModuleControlError(RuntimeFailure):
    """A running instance did not obey."""

    code = "control"


class ModuleStatus(Enum):
    """Whether an instance runs."""

    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What to start.

    Attributes:
        image: pinned by digest.
        env: may hold secrets; never shown in reprs.
        create_options: Docker's container-create document, parsed.
        workload_dir: folder of the module's workload socket; seen by the module at `/run/edgewright`.
        instance_id: chosen by the caller, unique among the module's instances.
    """

    name: str
    image: ImageRef
    instance_id: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    create_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    workload_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that is whole on this machine and may be started.

    Attributes:
        digest: as the deployment names it (an index or a manifest).
        manifest_digest: the manifest of this machine's platform.
        labels: the image's labels.
        layers: role → diff_id, in layer order.
        bytes_received: what the pull moved; 0 when everything was here.
    """

    digest: ImageDigest
    manifest_digest: ImageDigest
    labels: Mapping[str, str]
    layers: Mapping[str, ImageDigest]
    bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class RunningModule:
    """One instance, as it is now.

    Attributes:
        pid: of the module's own program as this machine sees it; None once it has exited.
        started_at: seconds since the epoch.
        exit_code: 128 + N for a program ended by signal N; None while it runs.
        reason: why the runtime itself ended it ("memory limit"), else None.
        health_address: where `GET /ready` answers, for this machine alone.
        public_address: where the module's users reach it.
        serving: whether it was told to take traffic (started without `hold`, or activated).
    """

    name: str
    instance_id: str
    image: ImageRef
    pid: int | None
    started_at: float
    status: ModuleStatus
    exit_code: int | None = None
    finished_at: float | None = None
    reason: str | None = None
    health_address: Address | None = None
    public_address: Address | None = None
    serving: bool = False


@dataclass(frozen=True, slots=True)
class ModuleStats:
    """What an instance's whole process tree uses."""

    memory_bytes: int
    cpu_s: float
    processes: int


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """What runs modules here, and why not something better (`reason`, empty for the best)."""

    kind: str
    tier: str
    reason: str = ""


class ModuleRuntime(Protocol):
    """What the edge agent needs from whatever runs modules. Blocking; callable from any thread."""

    def report(self) -> RuntimeReport:
        """Kind and tier in use.

        Raises:
            SandboxUnavailableError: no permitted tier works.
        """

    def pull(
        self, ref: ImageRef, credentials: BasicCredentials | None = None, progress: Progress | None = None
    ) -> PreparedImage:
        """Download what is missing, verify every digest, make the image ready to start.

        Raises:
            ContainerError: of the registry, the disk or the image; whatever was ready before still is.
        """

    def load_bundle(self, file: BinaryIO, where: str) -> Bundle:
        """Take every image of a bundle, ready to start, without any network; `where` names the file in errors.

        Raises:
            ContainerError: it is damaged, for another machine, or an image of it is; nothing of it is left.
        """

    def has_image(self, ref: ImageRef) -> bool:
        """Whether `start` would find the image whole, without any network."""

    def start(self, spec: ModuleSpec, *, hold: bool = False) -> RunningModule:
        """Start an instance; on failure nothing of it is left.

        Raises:
            ImageNotPreparedError, PortInUseError, ModuleStartError, SandboxUnavailableError.
        """

    def activate(self, name: str, instance_id: str) -> None:
        """Let a held instance serve its public address; twice is as once.

        Raises:
            NoSuchInstanceError, ModuleControlError.
        """

    def stop(self, name: str, instance_id: str, timeout_s: float = 10.0) -> RunningModule | None:
        """End an instance and everything it started: politely, after `timeout_s` by force; None if unknown."""

    def list(self) -> list[RunningModule]:
        """Every instance that was not removed, oldest first."""

    def remove(self, name: str, instance_id: str) -> None:
        """Stop the instance if it runs, and forget it with its logs."""

    def logs(self, name: str, tail: int | None = None) -> str:
        """What the module's instances printed, oldest first; the last `tail` lines of it."""

    def stats(self, name: str, instance_id: str) -> ModuleStats:
        """What the instance uses now.

        Raises:
            NoSuchInstanceError: it does not run.
        """

    def collect_garbage(self, keep_images: Iterable[ImageRef]) -> int:
        """Delete every image but these and those of existing instances; returns the bytes freed."""

    def prepare_quick_start(self, images: Iterable[ImageRef]) -> None:
        """Do, in the background and at the lowest priority, what makes these images' next start quicker."""
