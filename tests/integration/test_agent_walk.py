"""A real hub process, a real agent process, real sandboxed modules: one walk from manifest to roll-back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, Publisher, answer, is_alive, unknown_digest
from hub_harness import HubProcess, wait_until

from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import ModuleSettings

DEVICE = "edge-1"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    with HubProcess(tmp_path / "hub") as process:
        process.create_device(DEVICE, iot_edge=True)
        yield process


@pytest.fixture
def agent(hub: HubProcess) -> Iterator[AgentProcess]:
    process = AgentProcess(hub, DEVICE)
    yield process
    process.close()


@pytest.fixture
def publisher(hub: HubProcess, agent: AgentProcess, tmp_path: Path) -> Publisher:
    return Publisher(hub, tmp_path, agent.python)


def reported(publisher: Publisher, agent: AgentProcess, version: int) -> dict[str, Any]:
    """The reported properties once they speak of that desired version."""

    def found() -> dict[str, Any] | None:
        properties = publisher.reported(DEVICE)
        return properties if properties.get("lastDesiredVersion") == version else None

    try:
        return dict(wait_until(found, 30, f"lastDesiredVersion {version}"))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{publisher.reported(DEVICE)}\n{agent.log}") from error


def test_the_walk(hub: HubProcess, agent: AgentProcess, publisher: Publisher) -> None:
    agent.start()
    one = publisher.push("1")
    publisher.apply(DEVICE, ModuleSettings("scorer", one))
    version = publisher.desired_version(DEVICE)

    first = reported(publisher, agent, version)
    assert first["lastDesiredStatus"]["code"] == 200
    assert first["modules"]["scorer"]["runtimeStatus"] == "running"
    assert first["modules"]["scorer"]["settings"]["image"] == str(one)
    assert first["edgewright"]["release"]["result"] == "succeeded"
    assert first["systemModules"]["edgeHub"]["runtimeStatus"] == "running"
    password = publisher.credential.password.reveal()
    assert password not in json.dumps(first)
    assert password not in agent.log

    (scorer,) = agent.modules()
    assert answer(scorer["scoringUri"]) == "1"

    sent = agent.cli(
        "messages", "send", "--property", "kind=test", "--content-type", "text/plain", "-", input="hi"
    )
    assert sent.returncode == 0, sent.stderr
    wait_until(lambda: telemetry_bodies(hub), 15, "the device's message at the hub")

    # The plug is pulled: hub gone, agent killed.
    agent.kill()
    assert hub.stop() == 0
    assert is_alive(scorer["pid"])
    assert agent.modules()[0]["pid"] == scorer["pid"]
    agent.start()
    (adopted,) = wait_until(lambda: [row for row in agent.modules() if row["status"] == "running"], 10)
    assert adopted["pid"] == scorer["pid"]
    assert answer(scorer["scoringUri"]) == "1"
    hub.start()

    # A release whose module dies is rolled back by itself; the old one serves on.
    publisher.apply(DEVICE, ModuleSettings("scorer", publisher.push("crash")))
    bad = reported(publisher, agent, publisher.desired_version(DEVICE))
    assert bad["lastDesiredStatus"]["code"] == 500
    assert bad["edgewright"]["release"]["result"] == "failed-rolled-back"
    assert bad["edgewright"]["release"]["errorClass"] == "crash"
    assert bad["modules"]["scorer"]["settings"]["image"] == str(one)
    assert agent.modules()[0]["pid"] == scorer["pid"]
    assert answer(scorer["scoringUri"]) == "1"

    # An image that does not exist changes nothing.
    missing = ImageRef(one.registry, "digits", None, unknown_digest())
    publisher.apply(DEVICE, ModuleSettings("scorer", missing))
    absent = reported(publisher, agent, publisher.desired_version(DEVICE))
    assert absent["edgewright"]["release"]["result"] == "failed-no-change"
    assert absent["edgewright"]["release"]["errorClass"] == "not-found"
    assert agent.modules()[0]["pid"] == scorer["pid"]

    # Version 2 takes over at the same address.
    publisher.apply(DEVICE, ModuleSettings("scorer", publisher.push("2")))
    second = reported(publisher, agent, publisher.desired_version(DEVICE))
    assert second["edgewright"]["release"]["result"] == "succeeded"
    (switched,) = agent.modules()
    assert switched["scoringUri"] == scorer["scoringUri"]
    assert answer(switched["scoringUri"]) == "2"
    assert not is_alive(scorer["pid"])

    # A crash is mended within about a second.
    os.kill(switched["pid"], 9)
    wait_until(
        lambda: answer(switched["scoringUri"]) == "2" and agent.modules()[0]["status"] == "running", 10
    )
    assert agent.modules()[0]["pid"] != switched["pid"]

    # A module that leaves the manifest leaves the device, and its identity leaves the hub.
    publisher.apply(DEVICE, ModuleSettings("renamed", publisher.push("2")))
    assert reported(publisher, agent, publisher.desired_version(DEVICE))["lastDesiredStatus"]["code"] == 200
    identities = {"$edgeAgent", "$edgeHub", "renamed"}
    wait_until(lambda: module_names(hub) == identities, 15, "the identities at the hub")
    assert [row["name"] for row in agent.modules()] == ["renamed"]
    assert list(publisher.reported(DEVICE)["modules"]) == ["renamed"]

    checked = agent.cli("check", "--json")
    assert checked.returncode == 0, checked.stdout
    last = agent.modules()[0]["pid"]
    assert agent.stop() == 0
    assert is_alive(last)


def module_names(hub: HubProcess) -> set[str]:
    return {module.module_id for module in hub.registry_manager().get_modules(DEVICE)}


def telemetry_bodies(hub: HubProcess) -> list[dict[str, Any]]:
    return [message for message in hub.telemetry(DEVICE) if message["properties"].get("kind") == "test"]
