"""One short function per step kind: what the planner decided, done.

A step that fails raises; the reconciler turns that into a `StepFailure` under the key of `FAILURE_KEYS`, which the
planner reads in the next round. Failpoints: `<StepKind>:before` and `<StepKind>:after`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent import release as transitions
from edge_agent.background import in_thread
from edge_agent.desired import manifest_of
from edge_agent.identity import Identities
from edge_agent.planner import (
    ActivateInstance,
    AdvanceRelease,
    AwaitReady,
    BeginRelease,
    CommitRelease,
    EnsureIdentity,
    EnsureWorkload,
    MarkResult,
    PullImage,
    RemoveIdentity,
    RemoveInstance,
    RollBack,
    StartInstance,
    Step,
    StopInstance,
    SupersedeRelease,
    Wait,
)
from edge_agent.release import Failure, ModuleGoal, Release, ReleaseRecord
from edge_agent.store import Failpoint, Store, no_failpoint
from edge_containers.registry_client import BasicCredentials
from edge_containers.runtime import ModuleRuntime, ModuleSpec
from edge_contracts.errors import AgentError, EdgewrightError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ImagePullPolicy, ModuleSettings
from edge_contracts.release import ErrorClass

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 30.0
PULL_TIMEOUT_S = 24 * 3600.0
PARALLEL_PULLS = 2

ERROR_CLASSES: dict[str, ErrorClass] = {
    "registry-auth": ErrorClass.AUTH,
    "registry-not-found": ErrorClass.NOT_FOUND,
    "platform-not-found": ErrorClass.NOT_FOUND,
    "blob-not-found": ErrorClass.NOT_FOUND,
    "digest-mismatch": ErrorClass.NOT_FOUND,
    "image-not-prepared": ErrorClass.NOT_FOUND,
    "registry": ErrorClass.NETWORK,
    "registry-unavailable": ErrorClass.NETWORK,
    "identity": ErrorClass.NETWORK,
    "disk-full": ErrorClass.DISK,
    "state": ErrorClass.DISK,
    "exec-format": ErrorClass.EXEC_FORMAT,
    "image-format": ErrorClass.EXEC_FORMAT,
    "unsafe-layer": ErrorClass.EXEC_FORMAT,
    "start": ErrorClass.CRASH,
    "control": ErrorClass.UNHEALTHY,
    "no-such-instance": ErrorClass.CRASH,
    "unauthorized": ErrorClass.AUTH,
}
"""Error code → error class; every other code is `config`: something the manifest or the device's setup must change."""


class ReleaseContentError(AgentError):
    """A step names something that its release does not hold."""

    code = "config"


class Workloads(Protocol):
    """What the edge hub gives modules; `EdgeHub` is the real one."""

    def module_environment(self, module: str) -> dict[str, str]:
        """The IOTEDGE_* variables of a module."""

    async def ensure_module(self, module: str) -> Path:
        """Serve the module's workload socket; the folder it is in."""

    async def remove_module(self, module: str) -> None:
        """Stop serving it."""


@dataclass(slots=True)
class Hands:
    """What executors work with.

    Attributes:
        record: the release record as it is on the disk.
        pulls: images being pulled.
        pulled: called when a pull ended, with the error if it failed.
        pulled_bytes: what pulls have moved since the agent started.
    """

    runtime: ModuleRuntime
    identities: Identities
    workloads: Workloads
    store: Store
    pulled: Callable[[str, EdgewrightError | None], None]
    record: ReleaseRecord = field(default_factory=ReleaseRecord)
    failpoint: Failpoint = no_failpoint
    pulls: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    pulled_bytes: int = 0
    workload_dirs: dict[str, Path] = field(default_factory=dict)
    _pull_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL_PULLS))

    def release(self, digest: str) -> Release:
        """The committed or attempted release of that digest."""
        attempt = self.record.attempt
        for candidate in (attempt.release if attempt else None, self.record.committed):
            if candidate is not None and candidate.digest == digest:
                return candidate
        raise ReleaseContentError(f"release {digest} is neither committed nor attempted", where=digest)

    def keep_images(self) -> list[ImageRef]:
        """Images that garbage collection must leave: of the committed, the previous and the attempted release."""
        attempt = self.record.attempt
        releases = (self.record.committed, self.record.previous, attempt.release if attempt else None)
        names = {goal.image for release in releases if release for goal in release.modules}
        return [ImageRef.parse(name) for name in sorted(names)]


async def execute(hands: Hands, step: Step) -> None:
    """Do one step.

    Raises:
        EdgewrightError: it failed.
        TimeoutError: it took too long.
    """
    name = type(step).__name__
    hands.failpoint(f"{name}:before")
    await EXECUTORS[type(step)](hands, step)
    hands.failpoint(f"{name}:after")


def failure_key(step: Step) -> tuple[str, str] | None:
    """Under which key the planner looks for the failures of `step`."""
    match step:
        case PullImage(image=image):
            return ("pull", image)
        case StartInstance(goal=goal):
            return ("start", goal.instance_id)
        case ActivateInstance(runtime_id=runtime_id):
            return ("activate", goal_id(runtime_id))
        case EnsureIdentity(name=name) | RemoveIdentity(name=name):
            return ("identity", name)
        case EnsureWorkload(name=name):
            return ("workload", name)
    return None


def classify(error: BaseException) -> Failure:
    """What an error means for a release."""
    if isinstance(error, EdgewrightError):
        return Failure(ERROR_CLASSES.get(error.code, ErrorClass.CONFIG), error.message)
    if isinstance(error, TimeoutError):
        return Failure(ErrorClass.UNHEALTHY, "the step took too long")
    return Failure(ErrorClass.CONFIG, f"{type(error).__name__}: {error}")


def new_runtime_id(goal: ModuleGoal) -> str:
    """A fresh id for one start: runtimes want every start's id to be new."""
    return f"{goal.instance_id}-{time.time_ns() // 1000:x}"


def goal_id(runtime_id: str) -> str:
    """The goal's instance id out of a start's id."""
    return runtime_id.rpartition("-")[0] or runtime_id


def credentials_for(image: ImageRef, manifest: DeploymentManifest) -> BasicCredentials | None:
    """The manifest's credentials for the image's registry, by IoT Edge's rule: equal hosts, case ignored."""
    host = image.credentials_host
    for credential in manifest.credentials:
        if host is not None and credential.address.lower() == host.lower():
            return BasicCredentials(credential.username, credential.password)
    return None


async def _begin(hands: Hands, step: BeginRelease) -> None:
    _save(hands, transitions.begin(hands.record, step.release))


async def _advance(hands: Hands, step: AdvanceRelease) -> None:
    _save(hands, transitions.advance(hands.record, step.phase))


async def _commit(hands: Hands, step: CommitRelease) -> None:
    _save(hands, transitions.commit(hands.record))


async def _supersede(hands: Hands, step: SupersedeRelease) -> None:
    _save(hands, transitions.supersede(hands.record, step.newer))


async def _roll_back(hands: Hands, step: RollBack) -> None:
    _save(hands, transitions.fail(hands.record, step.failure))


async def _mark(hands: Hands, step: MarkResult) -> None:
    marks: Mapping[str, Callable[[], ReleaseRecord]] = {
        "settled": lambda: transitions.settle(hands.record, step.release),
        "rejected": lambda: transitions.reject(hands.record, step.release),
        "rolled-back": lambda: transitions.rolled_back(hands.record),
        "stuck": lambda: transitions.stuck(hands.record),
    }
    _save(hands, marks[step.result]())


def _save(hands: Hands, record: ReleaseRecord) -> None:
    hands.store.save_record(record)
    hands.record = record


async def _pull(hands: Hands, step: PullImage) -> None:
    settings = _settings_with_image(hands, step)
    if settings.image_pull_policy is ImagePullPolicy.NEVER:
        raise ReleaseContentError(
            f"image {step.image} is not on this device and module {settings.name} has imagePullPolicy never",
            where=settings.name,
        )
    manifest = manifest_of(hands.release(step.release))
    credentials = credentials_for(settings.image, manifest)
    hands.pulls[step.image] = asyncio.create_task(_pull_in_background(hands, settings.image, credentials))


async def _pull_in_background(hands: Hands, image: ImageRef, credentials: BasicCredentials | None) -> None:
    failed: EdgewrightError | None = None
    try:
        async with hands._pull_slots:
            prepared = await in_thread(PULL_TIMEOUT_S, hands.runtime.pull, image, credentials, None)
            hands.pulled_bytes += prepared.bytes_received
    except EdgewrightError as error:
        failed = error
    except TimeoutError:
        failed = AgentError(f"pull of {image} took too long", code="registry-unavailable", temporary=True)
    except Exception as error:
        failed = AgentError(f"pull of {image} failed: {type(error).__name__}: {error}", code="config")
    finally:
        hands.pulls.pop(str(image), None)
    hands.pulled(str(image), failed)


async def _start(hands: Hands, step: StartInstance) -> None:
    manifest = manifest_of(hands.release(step.release))
    settings = manifest.modules[step.goal.name]
    directory = hands.workload_dirs.get(step.goal.name)
    environment: dict[str, str] = dict(settings.env)
    if directory is not None:
        environment |= hands.workloads.module_environment(step.goal.name)
    spec = ModuleSpec(
        name=step.goal.name,
        image=settings.image,
        env=environment,
        create_options=settings.create_options,
        workload_dir=directory,
        instance_id=new_runtime_id(step.goal),
    )
    await in_thread(START_TIMEOUT_S, hands.runtime.start, spec, hold=step.hold)


async def _activate(hands: Hands, step: ActivateInstance) -> None:
    await in_thread(CONTROL_TIMEOUT_S, hands.runtime.activate, step.name, step.runtime_id)


async def _stop(hands: Hands, step: StopInstance) -> None:
    limit = STOP_TIMEOUT_S + CONTROL_TIMEOUT_S
    await in_thread(limit, hands.runtime.stop, step.name, step.runtime_id, STOP_TIMEOUT_S)


async def _remove(hands: Hands, step: RemoveInstance) -> None:
    await in_thread(STOP_TIMEOUT_S + CONTROL_TIMEOUT_S, hands.runtime.remove, step.name, step.runtime_id)


async def _ensure_identity(hands: Hands, step: EnsureIdentity) -> None:
    await in_thread(CONTROL_TIMEOUT_S, hands.identities.ensure, step.name)


async def _remove_identity(hands: Hands, step: RemoveIdentity) -> None:
    await hands.workloads.remove_module(step.name)
    hands.workload_dirs.pop(step.name, None)
    await in_thread(CONTROL_TIMEOUT_S, hands.identities.remove, step.name)


async def _ensure_workload(hands: Hands, step: EnsureWorkload) -> None:
    directory = await asyncio.wait_for(hands.workloads.ensure_module(step.name), CONTROL_TIMEOUT_S)
    hands.workload_dirs[step.name] = directory


async def _nothing(hands: Hands, step: AwaitReady | Wait) -> None:
    """Waiting is the reconciler's: it plans again when the time comes."""


def _settings_with_image(hands: Hands, step: PullImage) -> ModuleSettings:
    release = hands.release(step.release)
    for goal in release.modules:
        if goal.image == step.image:
            return manifest_of(release).modules[goal.name]
    raise ReleaseContentError(f"release {step.release} has no image {step.image}", where=step.image)


EXECUTORS: dict[type, Callable[[Hands, Any], Awaitable[None]]] = {
    BeginRelease: _begin,
    AdvanceRelease: _advance,
    CommitRelease: _commit,
    SupersedeRelease: _supersede,
    RollBack: _roll_back,
    MarkResult: _mark,
    PullImage: _pull,
    StartInstance: _start,
    ActivateInstance: _activate,
    StopInstance: _stop,
    RemoveInstance: _remove,
    EnsureIdentity: _ensure_identity,
    RemoveIdentity: _remove_identity,
    EnsureWorkload: _ensure_workload,
    AwaitReady: _nothing,
    Wait: _nothing,
}
