"""The reconcile loop against a runtime double: transactions, roll-back, back-off, and a kill at every failpoint."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from agent_hub_double import IdentitiesDouble, LocalHubDouble
from agent_runtime_double import BUILDS, Machine, RuntimeDouble, image

from edge_agent.desired import read_desired
from edge_agent.executors import Hands
from edge_agent.planner import AwaitReady
from edge_agent.reconciler import Reconciler
from edge_agent.release import Release
from edge_agent.store import Failpoint, Store, no_failpoint
from edge_containers.errors import (
    DigestMismatchError,
    DiskFullError,
    RegistryAuthError,
    RegistryUnavailableError,
)
from edge_contracts.manifest import DeploymentManifest, ModuleSettings, RegistryCredential, RestartPolicy
from edge_contracts.redact import Secret
from edge_contracts.release import ErrorClass, ReleaseResult


def document(
    *modules: ModuleSettings, user: str = "puller", address: str = "Registry.Example:5000"
) -> dict[str, Any]:
    credential = RegistryCredential("r", address, user, Secret("hush"))
    manifest = DeploymentManifest.assemble(modules, {}, [credential])
    return dict(manifest.dump()["modulesContent"]["$edgeAgent"]["properties.desired"])


def release(number: int, **builds: str) -> Release:
    modules = [ModuleSettings(name, image(build)) for name, build in builds.items()]
    found = read_desired(document(*modules), number).release
    assert found is not None
    return found


class Killed(BaseException):
    """The agent's process dies here."""


class Device:
    """One device's disk and machine; `boot` makes a new agent on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = Machine()
        self.identities = IdentitiesDouble()
        self.runtime = RuntimeDouble(self.machine)
        self.now = 1000.0
        self.reconciler: Any = None
        self.reports = 0

    def boot(self, failpoint: Failpoint = no_failpoint) -> Reconciler:
        store = Store(self.folder, failpoint)
        store.prepare()
        local_hub = LocalHubDouble(self.folder)
        hands = Hands(
            self.runtime, self.identities, local_hub, store, self._pulled, store.load_record(), failpoint
        )
        self.reconciler = Reconciler(
            hands,
            interval_s=1,
            ready_timeout_s=5,
            random=Random(1),
            changed=self._changed,
            clock=lambda: self.now,
            probe=self.runtime.probe,
        )
        return self.reconciler

    def _changed(self) -> None:
        self.reports += 1

    def _pulled(self, name: str, error: Any) -> None:
        self.reconciler.pull_ended(name, error)

    async def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Rounds until only waiting is left, with pulls and health gates awaited."""
        for _ in range(500):
            await self.reconciler.settle()
            if until():
                return
            awaiting = any(isinstance(step, AwaitReady) for step in self.reconciler.waiting)
            if not awaiting and not self.reconciler.hands.pulls and not self.reconciler._wake.is_set():
                return
            if awaiting:
                self.now += 1
            await asyncio.sleep(0.001)
        raise AssertionError(f"not settled: {self.reconciler.waiting}")

    def result(self) -> tuple[ReleaseResult, ErrorClass | None]:
        last = self.reconciler.hands.record.last
        return (last.result, last.error_class)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


async def running_one(device: Device) -> None:
    device.boot().want(release(1, scorer="good-1"))
    await device.settle()
    assert device.runtime.running() == {"scorer": "good-1"}


def test_a_release_runs_with_the_manifests_credentials_and_the_module_environment(device: Device) -> None:
    asyncio.run(running_one(device))
    assert device.runtime.pulled == [(str(image("good-1")), "puller")]
    (spec,) = device.runtime.started
    assert spec.env["IOTEDGE_MODULEID"] == "scorer"
    assert spec.workload_dir is not None
    assert device.identities.names() == {"scorer"}
    assert device.result() == (ReleaseResult.SUCCEEDED, None)


def test_credentials_go_to_the_registry_they_are_for_only(device: Device) -> None:
    async def walk() -> None:
        settings = ModuleSettings("scorer", image("good-1"))
        wanted = read_desired(document(settings, address="other.example"), 1).release
        device.boot().want(wanted)
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.pulled == [(str(image("good-1")), None)]


def test_an_update_replaces_the_module_and_keeps_the_previous_image(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        device.reconciler.want(release(2, scorer="good-2"))
        await device.settle()
        device.reconciler.want(release(3, scorer="good-3"))
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-3"}
    assert device.machine.images == {str(image("good-2")), str(image("good-3"))}


def test_a_module_that_dies_in_its_gate_rolls_back_with_its_exception(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        before = device.runtime.list()
        device.reconciler.want(release(2, scorer="crash-2"))
        await device.settle()
        assert device.runtime.list() == before

    asyncio.run(walk())
    assert device.result() == (ReleaseResult.FAILED_ROLLED_BACK, ErrorClass.CRASH)
    description = device.reconciler.hands.record.last.description
    assert "module scorer exited with code 3" in description
    assert "ValueError: no weights (score.py line 7)" in description


def test_a_module_that_is_never_ready_rolls_back_at_the_deadline(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        device.reconciler.want(release(2, scorer="deaf-2"))
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-1"}
    assert device.result() == (ReleaseResult.FAILED_ROLLED_BACK, ErrorClass.UNHEALTHY)
    assert "not ready within 5 s" in device.reconciler.hands.record.last.description


def test_a_module_that_cannot_be_started_rolls_back(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        device.reconciler.want(release(2, scorer="unstartable-2"))
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-1"}
    assert device.result()[0] is ReleaseResult.FAILED_ROLLED_BACK


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (DiskFullError(needed_bytes=10, free_bytes=1, where="/disk"), ErrorClass.DISK),
        (
            RegistryAuthError("wrong password", registry="registry.example", status=401),
            ErrorClass.AUTH,
        ),
    ],
)
def test_a_pull_that_fails_for_good_changes_nothing(
    device: Device, error: Any, error_class: ErrorClass
) -> None:
    async def walk() -> None:
        await running_one(device)
        before = device.runtime.list()
        device.runtime.pull_errors[str(image("good-2"))] = [error]
        device.reconciler.want(release(2, scorer="good-2"))
        await device.settle()
        assert device.runtime.list() == before

    asyncio.run(walk())
    assert device.result() == (ReleaseResult.FAILED_NO_CHANGE, error_class)
    assert error.message in device.reconciler.hands.record.last.description


def test_corrupt_bytes_are_fetched_once_more(device: Device) -> None:
    async def walk() -> None:
        corrupt = DigestMismatchError(expected="sha256:a", found="sha256:b", where="blob")
        device.runtime.pull_errors[str(image("good-1"))] = [corrupt]
        device.boot().want(release(1, scorer="good-1"))
        await device.settle()
        assert device.runtime.running() == {}
        device.now += 2
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-1"}


def test_a_registry_that_is_down_is_tried_again_without_a_result(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        down = RegistryUnavailableError("no answer", registry="registry.example")
        device.runtime.pull_errors[str(image("good-2"))] = [down, down]
        device.reconciler.want(release(2, scorer="good-2"))
        await device.settle()
        assert device.reconciler.hands.record.attempt is not None
        assert device.result() == (ReleaseResult.SUCCEEDED, None)
        for _ in range(2):
            device.now += 60
            await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-2"}


def test_a_crashed_module_restarts_at_once_then_with_back_off_even_while_a_pull_stalls(
    device: Device,
) -> None:
    async def walk() -> list[float]:
        await running_one(device)
        stalled = threading.Event()
        device.runtime.stalled[str(image("good-2"))] = stalled
        device.reconciler.want(release(2, scorer="good-2"))
        await device.reconciler.settle()
        assert device.reconciler.hands.pulls
        delays = []
        for _ in range(3):
            crash(device)
            died = device.now
            await device.reconciler.settle()
            while not device.runtime.running():
                device.now += 0.5
                await device.reconciler.settle()
            delays.append(device.now - died)
        stalled.set()
        await device.settle()
        assert device.runtime.running() == {"scorer": "good-2"}
        return delays

    first, second, third = asyncio.run(walk())
    assert first <= 1
    assert 8 <= second <= 12
    assert 17 <= third <= 23


@pytest.mark.parametrize(
    ("policy", "code", "restarted"),
    [
        (RestartPolicy.ALWAYS, 0, True),
        (RestartPolicy.ON_FAILURE, 0, False),
        (RestartPolicy.ON_FAILURE, 1, True),
        (RestartPolicy.ON_UNHEALTHY, 1, True),
        (RestartPolicy.NEVER, 1, False),
    ],
)
def test_a_restart_policy_is_respected(
    device: Device, policy: RestartPolicy, code: int, restarted: bool
) -> None:
    async def walk() -> None:
        desired = document(ModuleSettings("scorer", image("good-1")))
        desired["modules"]["scorer"]["restartPolicy"] = policy.value
        device.boot().want(read_desired(desired, 1).release)
        await device.settle()
        (module,) = device.runtime.list()
        device.runtime.end(module.name, module.instance_id, code)
        await device.settle()

    asyncio.run(walk())
    assert bool(device.runtime.running()) == restarted


@pytest.mark.parametrize("build", ["deaf-2", "crash-2", "good-2"])
def test_a_newer_release_supersedes_an_attempt_and_leaves_no_orphan(device: Device, build: str) -> None:
    async def walk() -> None:
        await running_one(device)
        device.reconciler.want(release(2, scorer=build, extra="deaf-x"))
        await device.settle(until=lambda: len(device.runtime.started) == 3)
        device.reconciler.want(release(3, scorer="good-3"))
        await device.settle()

    asyncio.run(walk())
    assert [BUILDS[str(m.image.digest)] for m in device.runtime.list()] == ["good-3"]
    results = [terminal.result for terminal in device.reconciler.hands.record.results]
    assert results[0] is results[-1] is ReleaseResult.SUCCEEDED
    assert len(results) == 3


def test_going_back_to_the_running_release_supersedes_at_once(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        before = device.runtime.list()
        device.reconciler.want(release(2, scorer="deaf-2"))
        await device.settle(until=lambda: len(device.runtime.started) == 2)
        device.reconciler.want(release(3, scorer="good-1"))
        await device.settle()
        assert device.runtime.list() == before

    asyncio.run(walk())
    assert device.result() == (ReleaseResult.SUCCEEDED, None)


def crash(device: Device) -> None:
    (module,) = [m for m in device.runtime.list() if m.pid is not None]
    device.runtime.end(module.name, module.instance_id, 1)


def test_a_requested_restart_replaces_the_process_once(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        before = device.runtime.list()[0].instance_id
        device.reconciler.request_restart("scorer")
        await device.settle()
        running = [m for m in device.runtime.list() if m.pid is not None]
        assert [m.name for m in running] == ["scorer"]
        assert running[0].instance_id != before
        await device.settle()
        assert len(device.runtime.started) == 2

    asyncio.run(walk())


def test_a_reboot_without_a_network_starts_the_committed_release(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        device.machine.modules.clear()
        device.identities.online = False
        device.boot()
        await device.settle()

    asyncio.run(walk())
    assert device.runtime.running() == {"scorer": "good-1"}
    assert len(device.runtime.pulled) == 1


def test_an_agent_that_starts_again_adopts_its_modules(device: Device) -> None:
    async def walk() -> None:
        await running_one(device)
        before = device.runtime.list()
        device.boot().want(release(1, scorer="good-1"))
        await device.settle()
        assert device.runtime.list() == before

    asyncio.run(walk())
    assert len(device.runtime.started) == 1


@pytest.mark.parametrize("second", ["good-2", "crash-2"])
def test_a_kill_at_any_failpoint_leaves_a_whole_release_and_one_result(second: str) -> None:
    """Promises 1, 2 and 5: the sweep ends when a run meets no further failpoint."""
    survived = 0
    # In memory where there is some: hundreds of syncs of a real disk would take the most of it.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        while asyncio.run(killed_at(Path(folder, str(survived)), second, survived)):
            survived += 1
    assert survived > 25
    print(f"killed at each of {survived} failpoints")


async def killed_at(folder: Path, second: str, number: int) -> bool:
    """Update a device whose agent dies at its failpoint `number`; whether there was such a failpoint."""
    device = Device(folder)
    await running_one(device)
    left = [number]

    def failpoint(name: str) -> None:
        if left[0] == 0:
            left[0] = -1
            raise Killed(name)
        left[0] -= 1

    killed = False
    device.boot(failpoint).want(release(2, scorer=second, extra="good-x"))
    try:
        await device.settle()
    except Killed:
        killed = True
    for task in list(device.reconciler.hands.pulls.values()):
        await task
    assert ("scorer", "good-1") in device.runtime.serving_builds() or device.runtime.serving_builds() == {
        ("scorer", "good-2"),
        ("extra", "good-x"),
    }
    device.boot().want(release(2, scorer=second, extra="good-x"))
    await device.settle()
    record = device.reconciler.hands.record
    assert [terminal.number for terminal in record.results] == [1, 2]
    assert record.attempt is None
    if second == "good-2":
        assert device.runtime.running() == {"scorer": "good-2", "extra": "good-x"}
    else:
        assert device.runtime.running() == {"scorer": "good-1"}
    return killed
