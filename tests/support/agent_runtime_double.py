"""A module runtime that keeps its state in memory and behaves as its images say.

A `Machine` is what outlives the agent: images on the disk and running instances. Several `RuntimeDouble`s may be made
on one machine, as several agents in turn would.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edge_agent.planner import Health
from edge_containers.registry_client import BasicCredentials
from edge_containers.runtime import (
    ImageNotPreparedError,
    ModuleSpec,
    ModuleStartError,
    ModuleStats,
    ModuleStatus,
    NoSuchInstanceError,
    PreparedImage,
    Progress,
    RunningModule,
    RuntimeReport,
)
from edge_contracts.errors import ContainerError
from edge_contracts.image_ref import ImageDigest, ImageRef

REGISTRY = "registry.example:5000"


def image(build: str) -> ImageRef:
    """The image of a build: `good…` becomes ready, `crash…` dies, `deaf…` never becomes ready, `unstartable…` fails."""
    digest = ImageDigest("sha256", hashlib.sha256(build.encode()).hexdigest())
    BUILDS[str(digest)] = build
    return ImageRef(REGISTRY, "digits", None, digest)


BUILDS: dict[str, str] = {}
TRACEBACK = 'Traceback (most recent call last):\n  File "/var/azureml-app/score.py", line 7, in init\nValueError: no weights\n'


@dataclass
class Machine:
    """What is there when no agent is."""

    images: set[str] = field(default_factory=set)
    modules: list[RunningModule] = field(default_factory=list)
    pids: int = 1_000_000_000  # beyond any real process


class RuntimeDouble:
    """See the module's docstring.

    Attributes:
        pull_errors: image → errors that the next pulls of it raise.
        pulled: what was pulled, with the user name it was pulled with.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.pull_errors: dict[str, list[ContainerError]] = {}
        self.pulled: list[tuple[str, str | None]] = []
        self.started: list[ModuleSpec] = []
        self.stalled: dict[str, threading.Event] = {}
        self._lock = threading.RLock()

    def report(self) -> RuntimeReport:
        return RuntimeReport("double", "namespaces")

    def pull(
        self, ref: ImageRef, credentials: BasicCredentials | None = None, progress: Progress | None = None
    ) -> PreparedImage:
        if str(ref) in self.stalled:
            self.stalled[str(ref)].wait(10)
        with self._lock:
            self.pulled.append((str(ref), credentials.username if credentials else None))
            if self.pull_errors.get(str(ref)):
                raise self.pull_errors[str(ref)].pop(0)
            self.machine.images.add(str(ref))
        assert ref.digest is not None
        return PreparedImage(ref.digest, ref.digest, {}, {})

    def has_image(self, ref: ImageRef) -> bool:
        return str(ref) in self.machine.images

    def start(self, spec: ModuleSpec, *, hold: bool = False) -> RunningModule:
        build = BUILDS[str(spec.image.digest)]
        with self._lock:
            if str(spec.image) not in self.machine.images:
                raise ImageNotPreparedError(f"image {spec.image} has not been pulled")
            if any(m.instance_id == spec.instance_id for m in self.machine.modules):
                raise ModuleStartError(f"instance {spec.instance_id} has been used")
            if build.startswith("unstartable"):
                raise ModuleStartError(f"module {spec.name} cannot be executed")
            self.started.append(spec)
            self.machine.pids += 1
            module = RunningModule(
                name=spec.name,
                instance_id=spec.instance_id,
                image=spec.image,
                pid=self.machine.pids,
                started_at=time.time(),
                status=ModuleStatus.RUNNING,
                health_address=("127.0.0.1", 1),
                public_address=("127.0.0.1", 20000),
                serving=not hold,
            )
            self.machine.modules.append(module)
        if build.startswith("crash"):
            self.end(spec.name, spec.instance_id, 3)
        return module

    def activate(self, name: str, instance_id: str) -> None:
        self._change(name, instance_id, serving=True)

    def stop(self, name: str, instance_id: str, timeout_s: float = 10.0) -> RunningModule | None:
        found = self._find(name, instance_id)
        if found is not None and found.status is ModuleStatus.RUNNING:
            self.end(name, instance_id, 0)
        return found

    def list(self) -> list[RunningModule]:
        with self._lock:
            return list(self.machine.modules)

    def remove(self, name: str, instance_id: str) -> None:
        with self._lock:
            self.machine.modules[:] = [
                m for m in self.machine.modules if (m.name, m.instance_id) != (name, instance_id)
            ]

    def logs(self, name: str, tail: int | None = None) -> str:
        return TRACEBACK

    def stats(self, name: str, instance_id: str) -> ModuleStats:
        return ModuleStats(0, 0.0, 1)

    def collect_garbage(self, keep_images: Iterable[ImageRef]) -> int:
        with self._lock:
            kept = {str(ref) for ref in keep_images} | {str(m.image) for m in self.machine.modules}
            freed = len(self.machine.images - kept)
            self.machine.images &= kept
            return freed

    def prepare_quick_start(self, images: Iterable[ImageRef]) -> None:
        """There is nothing that would make a double quicker."""

    # What tests do to it, and ask of it.

    async def probe(self, module: RunningModule) -> Health:
        """What the agent's health probe finds."""
        build = BUILDS[str(module.image.digest)]
        return Health.NOT_READY if build.startswith("deaf") else Health.READY

    def end(self, name: str, instance_id: str, code: int) -> None:
        """The module's process ends."""
        self._change(
            name, instance_id, status=ModuleStatus.EXITED, exit_code=code, pid=None, finished_at=time.time()
        )

    def running(self) -> dict[str, str]:
        """Module → build of its serving instance; fails when two serve."""
        serving = [m for m in self.list() if m.status is ModuleStatus.RUNNING and m.serving]
        assert len({m.name for m in serving}) == len(serving), serving
        return {m.name: BUILDS[str(m.image.digest)] for m in serving}

    def serving_builds(self) -> set[tuple[str, str]]:
        """Module and build of everything that serves, old and new."""
        return {
            (m.name, BUILDS[str(m.image.digest)])
            for m in self.list()
            if m.status is ModuleStatus.RUNNING and m.serving
        }

    def _find(self, name: str, instance_id: str) -> RunningModule | None:
        with self._lock:
            wanted = (name, instance_id)
            return next((m for m in self.machine.modules if (m.name, m.instance_id) == wanted), None)

    def _change(self, name: str, instance_id: str, **changes: object) -> None:
        with self._lock:
            if self._find(name, instance_id) is None:
                raise NoSuchInstanceError(f"no instance {instance_id} of {name}")
            self.machine.modules[:] = [
                replace(m, **changes) if (m.name, m.instance_id) == (name, instance_id) else m  # type: ignore[arg-type]
                for m in self.machine.modules
            ]
