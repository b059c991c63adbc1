"""The whole agent against a hub, a runtime and an edge hub that live in memory."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest
from agent_hub_double import HubDouble, IdentitiesDouble, LocalHubDouble
from agent_runtime_double import Machine, RuntimeDouble, image

from edge_agent.agent import Agent
from edge_agent.background import in_thread
from edge_agent.config import AgentConfig, load_config
from edge_agent.control import AgentNotRunningError, ControlError, call
from edge_agent.store import Store
from edge_contracts.manifest import DeploymentManifest, ModuleSettings, RegistryCredential
from edge_contracts.redact import Secret


class Bench:
    """One device, its hub, and as many agents in turn as a test starts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text("[agent]\nreconcile_interval_s = 0.2\nready_timeout_s = 2\n")
        self.config: AgentConfig = load_config(folder / "config.toml", {})
        self.hub = HubDouble()
        self.identities = IdentitiesDouble()
        self.machine = Machine()
        self.runtime = RuntimeDouble(self.machine)
        self.local_hub = LocalHubDouble(folder)

    async def during(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run an agent while `work` runs, then stop it."""
        store = Store(self.config.state_dir)
        store.prepare()
        agent = Agent(
            self.config,
            device_id="d",
            runtime=self.runtime,
            identities=self.identities,
            connector=self.hub,
            local_hub=self.local_hub,
            upstream=self.local_hub,
            store=store,
            random=Random(1),
            probe=self.runtime.probe,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(agent.run(stop))
        try:
            await until((self.config.state_dir / "control.sock").exists)
            await asyncio.wait_for(work(), 20)
        finally:
            stop.set()
            await asyncio.wait_for(running, 20)

    def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(self.during(work))

    def apply(self, *modules: ModuleSettings, routes: dict[str, str] | None = None) -> int:
        """What applying a manifest does to the two twins; `$edgeAgent`'s new version."""
        credential = RegistryCredential("r", "registry.example:5000", "puller", Secret("hush-hush"))
        content = DeploymentManifest.assemble(modules, routes or {}, [credential]).dump()["modulesContent"]
        self.hub.set_desired("$edgeHub", content["$edgeHub"]["properties.desired"])
        return self.hub.set_desired("$edgeAgent", content["$edgeAgent"]["properties.desired"])

    def reported(self) -> dict[str, Any]:
        return self.hub.reported.get("$edgeAgent", {})

    async def reports(self, version: int, code: int) -> None:
        """Until that version is reported with that code."""
        await until(
            lambda: (
                self.reported().get("lastDesiredVersion") == version
                and self.reported()["lastDesiredStatus"]["code"] == code
            ),
            self.reported,
        )

    async def call(self, op: str, **arguments: Any) -> Any:
        return await in_thread(10, lambda: call(self.config.state_dir, op, **arguments))


async def until(condition: Callable[[], Any], shown: Callable[[], Any] = lambda: "") -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, shown()
        await asyncio.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "device")


SCORER = ModuleSettings("scorer", image("good-1"))


def test_desired_properties_become_running_modules_and_reports(bench: Bench) -> None:
    async def work() -> None:
        version = bench.apply(SCORER, routes={"up": "FROM /messages/* INTO $upstream"})
        await bench.reports(version, 200)
        reported = bench.reported()
        assert reported["modules"]["scorer"]["runtimeStatus"] == "running"
        assert reported["systemModules"]["edgeAgent"]["runtimeStatus"] == "running"
        assert reported["edgewright"]["release"]["result"] == "succeeded"
        assert "hush-hush" not in json.dumps(bench.hub.patches)
        await until(lambda: bench.hub.reported.get("$edgeHub", {}).get("lastDesiredVersion") == version)
        assert [route.name for route in bench.local_hub.routes] == ["up"]

    bench.run(work)
    assert bench.runtime.running() == {"scorer": "good-1"}


def test_a_patch_is_applied_and_a_gap_fetches_the_whole_twin(bench: Bench) -> None:
    async def work() -> None:
        bench.apply(SCORER)
        await until(lambda: bench.runtime.running() == {"scorer": "good-1"})
        gets = bench.hub.full_gets["$edgeAgent"]
        stopped = {"modules": {"scorer": {"status": "stopped"}}}
        await bench.reports(bench.hub.patch_desired("$edgeAgent", stopped), 200)
        assert bench.runtime.running() == {}
        assert bench.hub.full_gets["$edgeAgent"] == gets
        started = {"modules": {"scorer": {"status": "running"}}}
        await bench.reports(bench.hub.patch_desired("$edgeAgent", started, skip=1), 200)
        assert bench.hub.full_gets["$edgeAgent"] == gets + 1
        assert bench.runtime.running() == {"scorer": "good-1"}

    bench.run(work)


@pytest.mark.parametrize(
    ("patch", "code", "words"),
    [
        ({"schemaVersion": "9.9"}, 412, "9.9"),
        ({"modules": {"scorer": {"settings": {"image": "digits:1"}}}}, 400, "by digest"),
        ({"modules": {"scorer": {"restartPolicy": "sometimes"}}}, 400, "modules.scorer.restartPolicy"),
    ],
)
def test_a_bad_manifest_is_reported_and_changes_nothing(
    bench: Bench, patch: dict[str, Any], code: int, words: str
) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER), 200)
        before = bench.runtime.list()
        await bench.reports(bench.hub.patch_desired("$edgeAgent", patch), code)
        assert words in bench.reported()["lastDesiredStatus"]["description"]
        assert bench.runtime.list() == before

    bench.run(work)


def test_empty_desired_properties_are_417(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(1, 417)

    bench.run(work)


def test_a_bad_route_keeps_the_routes_that_were_there(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER, routes={"up": "FROM /messages/* INTO $upstream"}), 200)
        await until(lambda: bool(bench.local_hub.routes))
        bench.hub.patch_desired("$edgeHub", {"routes": {"up": "FROM nowhere"}})
        await until(lambda: bench.hub.reported["$edgeHub"]["lastDesiredStatus"]["code"] == 400)
        assert "routes.up" in bench.hub.reported["$edgeHub"]["lastDesiredStatus"]["description"]
        assert [route.name for route in bench.local_hub.routes] == ["up"]

    bench.run(work)


def test_only_differences_are_reported_and_nothing_when_nothing_changed(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER), 200)
        await asyncio.sleep(0.3)
        count = len(bench.hub.patches)
        await asyncio.sleep(0.6)
        assert len(bench.hub.patches) == count, bench.hub.patches[count:]

    bench.run(work)


def test_a_restart_offline_adopts_modules_and_reports_once_the_hub_is_back(bench: Bench) -> None:
    async def first() -> None:
        await bench.reports(bench.apply(SCORER), 200)

    async def second() -> None:
        bench.hub.online = bench.identities.online = False
        while [row["status"] for row in await bench.call("list")] != ["running"]:
            await asyncio.sleep(0.01)
        status = await bench.call("status")
        assert not status["hub"]["connected"]
        assert bench.runtime.list() == before
        bench.hub.online = bench.identities.online = True
        version = bench.apply(ModuleSettings("scorer", image("good-2")))
        await bench.reports(version, 200)

    bench.run(first)
    before = bench.runtime.list()
    bench.hub.online = bench.identities.online = False
    bench.run(second)
    assert bench.runtime.running() == {"scorer": "good-2"}


def test_a_dropped_connection_is_made_again(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER), 200)
        bench.hub.drop()
        await until(lambda: len(bench.hub.links) == 2)
        await bench.reports(bench.apply(ModuleSettings("scorer", image("good-2"))), 200)

    bench.run(work)


def test_a_refused_key_is_shown_and_set_again_at_the_hub(bench: Bench) -> None:
    bench.hub.accepts_keys = False

    async def work() -> None:
        await until(lambda: "$edgeAgent" in bench.identities.renewed)
        status = await bench.call("status")
        assert status["hub"]["error_code"] == "hub-unauthorized"
        bench.hub.accepts_keys = True
        await bench.reports(bench.apply(SCORER), 200)

    bench.run(work)


def test_a_taken_edge_hub_address_is_reported_and_modules_run_all_the_same(bench: Bench) -> None:
    bench.local_hub.start_error = OSError("address in use")

    async def work() -> None:
        await bench.reports(bench.apply(SCORER), 200)
        module = bench.reported()["systemModules"]["edgeHub"]
        assert module["runtimeStatus"] == "failed"
        assert "address in use" in module["statusDescription"]

    bench.run(work)
    assert bench.runtime.running() == {"scorer": "good-1"}


def test_the_control_socket_restarts_modules_and_sends_messages(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER, routes={"up": "FROM /messages/* INTO $upstream"}), 200)
        await bench.call("restart", module="scorer")
        await until(lambda: len(bench.runtime.started) == 2)
        with pytest.raises(ControlError, match=r"no module 'other'.*scorer"):
            await bench.call("restart", module="other")
        answer = await bench.call(
            "send", body=base64.b64encode(b"hi").decode(), properties={"kind": "x"}, contentType="text/plain"
        )
        assert answer == {"endpoints": 1}
        assert bench.local_hub.published[0].properties == {"kind": "x"}
        with pytest.raises(ControlError, match="unknown operation 'fly'"):
            await bench.call("fly")
        assert (bench.config.state_dir / "control.sock").stat().st_mode & 0o777 == 0o600

    bench.run(work)
    with pytest.raises(AgentNotRunningError, match="no edge-agent answers"):
        call(bench.config.state_dir, "list")


def test_stored_files_that_hold_secrets_are_private(bench: Bench) -> None:
    async def work() -> None:
        await bench.reports(bench.apply(SCORER), 200)

    bench.run(work)
    names = {
        path.name: path.stat().st_mode & 0o777 for path in bench.config.state_dir.iterdir() if path.is_file()
    }
    assert {"release.json", "desired-agent.json", "desired-hub.json"} <= set(names)
    assert set(names.values()) == {0o600}
