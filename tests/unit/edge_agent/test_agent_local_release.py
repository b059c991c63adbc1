"""`edge-agent apply` in an agent whose hub, runtime and edge hub live in memory: alone, then back online."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from agent_runtime_double import image
from test_agent_agent import Bench, until

from edge_agent.control import ControlError
from edge_agent.local_release import LocalReleaseError, load_local, make_release, take_file
from edge_agent.release import Release, ReleaseRecord, Terminal
from edge_agent.store import Store, StoreError
from edge_contracts.manifest import DeploymentManifest, ModuleSettings
from edge_contracts.release import ReleaseResult

LOCAL = ModuleSettings("scorer", image("good-local"))
OF_HUB = ModuleSettings("scorer", image("good-hub"))
ROUTES = {"mine": "FROM /messages/* INTO $upstream"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "device")
    bench.hub.online = bench.identities.online = False
    bench.machine.images |= {str(LOCAL.image), str(OF_HUB.image)}
    return bench


def written(folder: Path, *modules: ModuleSettings, name: str = "m.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(DeploymentManifest.assemble(modules, ROUTES).dump()))
    return path


async def applied(bench: Bench, path: Path) -> dict[str, Any]:
    await bench.call("apply", path=str(path))
    while True:
        status: dict[str, Any] = await bench.call("apply-status")
        if status["state"] == "ended":
            return status
        await asyncio.sleep(0.02)


def test_manifest_runs_without_a_hub_and_is_there_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    async def work() -> None:
        status = await applied(bench, written(tmp_path, LOCAL))
        assert status["result"] == "succeeded"
        assert bench.runtime.running() == {"scorer": "good-local"}
        assert [route.name for route in bench.local_hub.routes] == ["mine"]
        shown = await bench.call("status")
        assert shown["localRelease"]["source"] == "m.json"
        assert shown["localRelease"]["digest"] == status["release"] == shown["release"]["committed"]

    bench.run(work)

    async def again() -> None:
        await until(lambda: bench.runtime.running() == {"scorer": "good-local"})
        assert [route.name for route in bench.local_hub.routes] == ["mine"]
        assert (await bench.call("status"))["release"]["last"]["desiredVersion"] == -1

    bench.local_hub.routes = ()
    bench.run(again)
    assert len(bench.runtime.started) == 1, "the module was left running"


def test_back_online_the_hubs_desired_state_wins_and_the_report_names_the_local_release(
    bench: Bench, tmp_path: Path
) -> None:
    async def work() -> None:
        status = await applied(bench, written(tmp_path, LOCAL))
        version = bench.apply(OF_HUB, routes={"up": "FROM /messages/* INTO $upstream"})
        bench.hub.online = bench.identities.online = True
        await bench.reports(version, 200)
        await until(lambda: bench.runtime.running() == {"scorer": "good-hub"})
        local = bench.reported()["edgewright"]["localRelease"]
        assert (local["digest"], local["source"], local["active"]) == (status["release"], "m.json", False)
        await until(lambda: [route.name for route in bench.local_hub.routes] == ["up"])

    bench.run(work)
    found = load_local(Store(bench.config.state_dir))
    assert found is not None
    assert not found.is_active


def test_hub_that_desires_nothing_leaves_it_alone_until_it_does(bench: Bench, tmp_path: Path) -> None:
    async def work() -> None:
        await applied(bench, written(tmp_path, LOCAL))
        bench.hub.online = bench.identities.online = True
        await until(lambda: bench.reported().get("edgewright", {}).get("localRelease", {}).get("active"))
        assert bench.runtime.running() == {"scorer": "good-local"}
        version = bench.apply(OF_HUB)
        await bench.reports(version, 200)
        assert bench.runtime.running() == {"scorer": "good-hub"}

    bench.run(work)


def test_while_the_hub_decides_nothing_is_applied_here(bench: Bench, tmp_path: Path) -> None:
    bench.hub.online = bench.identities.online = True

    async def work() -> None:
        await bench.reports(bench.apply(OF_HUB), 200)
        with pytest.raises(ControlError, match="its desired state holds") as caught:
            await bench.call("apply", path=str(written(tmp_path, LOCAL)))
        assert caught.value.code == "hub-decides"
        assert bench.runtime.running() == {"scorer": "good-hub"}

    bench.run(work)
    assert load_local(Store(bench.config.state_dir)) is None


def test_file_that_cannot_be_taken_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    async def work() -> None:
        await applied(bench, written(tmp_path, LOCAL))
        before = (bench.config.state_dir / "local.json").read_bytes()
        missing = written(tmp_path, ModuleSettings("scorer", image("nowhere")), name="missing.json")
        for path, part in ((missing, "not on this device"), (tmp_path / "none", "No such file")):
            await bench.call("apply", path=str(path))
            with pytest.raises(ControlError, match=part):
                await until_refused(bench)
        assert (bench.config.state_dir / "local.json").read_bytes() == before
        assert bench.runtime.running() == {"scorer": "good-local"}

    bench.run(work)


async def until_refused(bench: Bench) -> None:
    while (await bench.call("apply-status"))["state"] == "reading":
        await asyncio.sleep(0.02)


def test_release_that_does_not_become_ready_is_rolled_back_and_may_come_again(
    bench: Bench, tmp_path: Path
) -> None:
    crash = ModuleSettings("scorer", image("crash-local"))

    async def work() -> None:
        await applied(bench, written(tmp_path, LOCAL))
        bench.machine.images.add(str(crash.image))
        bad = await applied(bench, written(tmp_path, crash))
        assert bad["result"] == "failed-rolled-back"
        assert bench.runtime.running() == {"scorer": "good-local"}
        good = await applied(bench, written(tmp_path, LOCAL))
        assert good["result"] == "succeeded"

    bench.run(work)


# The file itself.


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "no deployment manifest"),
        ("{}", "modulesContent"),
        ("{" + " " * (1 << 20), "at most"),
    ],
)
def test_bad_file_is_refused(bench: Bench, tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(LocalReleaseError, match=part):
        take_file(path, bench.runtime)


def test_pipe_and_folder_are_no_files(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(LocalReleaseError, match="must be a file"):
            take_file(path, bench.runtime)


def test_every_apply_has_a_number_of_its_own(bench: Bench, tmp_path: Path) -> None:
    taken = take_file(written(tmp_path, LOCAL), bench.runtime)
    first = make_release(taken, ReleaseRecord(), None)
    assert first.number == -1
    assert make_release(taken, ReleaseRecord(), first).number == -2
    record = ReleaseRecord(
        committed=Release("sha256:1", 7, ()), results=(Terminal("sha256:2", -5, ReleaseResult.SUCCEEDED),)
    )
    assert make_release(taken, record, first).number == -6


def test_damaged_local_file_does_not_stop_the_agent(bench: Bench) -> None:
    bench.config.state_dir.mkdir(parents=True)
    (bench.config.state_dir / "local.json").write_text("{}")
    with pytest.raises(StoreError, match=r"local\.json"):
        load_local(Store(bench.config.state_dir))

    async def work() -> None:
        assert (await bench.call("status"))["localRelease"] is None

    bench.run(work)
