"""Devices from the publisher's side: the agent's configuration, and what became of a deployment."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from publisher_hub_double import HubDouble

from edge_agent.config import load_config
from edge_contracts.errors import EdgewrightError, PublishError
from edge_contracts.redact import Secret
from edge_contracts.release import ReleaseResult
from publisher.devices import (
    NoDeploymentError,
    WaitTimeoutError,
    check_device_id,
    device_connection_string,
    prepare_agent_folder,
    read_rollout,
    wait_for_rollout,
    write_agent_config,
)
from publisher.embedded_hub import HubAddress, HubEndpoint
from publisher.errors import UsageError
from publisher.hub_client import DeviceIdentity, HubNotFoundError, HubUnreachableError

DEVICE = "edge-1"
SERVICE = "HostName=127.9.9.9:8443;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VydmljZQ=="
IDENTITY = DeviceIdentity(DEVICE, True, True, False, Secret("ZGV2aWNl"))


# The configuration of an agent.


@pytest.fixture
def endpoint(tmp_path: Path) -> HubEndpoint:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("-----BEGIN CERTIFICATE-----\n")
    return HubEndpoint(Secret(SERVICE), ca_file, HubAddress("127.9.9.9"))


def write(directory: Path, endpoint: HubEndpoint, python: str = "/usr/bin/python3") -> Path:
    written = write_agent_config(directory, endpoint, IDENTITY, edge_hub_host="127.9.9.8", python=python)
    return written.config_file


def test_device_signs_in_at_the_hub_without_the_services_port_and_key(endpoint: HubEndpoint) -> None:
    text = device_connection_string(endpoint, IDENTITY).format()
    assert text == f"HostName=127.9.9.9;DeviceId={DEVICE};SharedAccessKey=ZGV2aWNl"


def test_written_configuration_is_one_that_the_agent_reads(endpoint: HubEndpoint, tmp_path: Path) -> None:
    directory = tmp_path / "a/b"
    config = load_config(write(directory, endpoint), {})
    assert config.https_port == 8443
    assert config.ca_file == directory / "hub-ca.pem"
    assert config.edge_hub_host == "127.9.9.8"
    assert config.connection_string() == device_connection_string(endpoint, IDENTITY)


def test_every_written_file_is_its_owners_alone(endpoint: HubEndpoint, tmp_path: Path) -> None:
    directory = write(tmp_path / "agent", endpoint).parent
    assert directory.stat().st_mode & 0o777 == 0o711
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "config.toml": 0o600,
        "connection-string": 0o600,
        "hub-ca.pem": 0o600,
    }
    assert "ZGV2aWNl" not in (directory / "config.toml").read_text()


def test_hub_of_a_public_authority_needs_no_file_of_it(endpoint: HubEndpoint, tmp_path: Path) -> None:
    text = "HostName=h.azure-devices.net;SharedAccessKeyName=n;SharedAccessKey=c2VydmljZQ=="
    azure = replace(endpoint, access=Secret(text), ca_file=None)
    config_file = write(tmp_path / "agent", azure)
    settings = tomllib.loads(config_file.read_text())["hub"]
    assert settings == {"connection_string_file": "connection-string", "https_port": 443}
    assert not (config_file.parent / "hub-ca.pem").exists()


@pytest.mark.parametrize("python", ['/opt/py "3"/bin/python', "/opt/back\\slash", "/opt/ünï/🐍", "/a\nb"])
def test_any_path_survives_the_settings(endpoint: HubEndpoint, tmp_path: Path, python: str) -> None:
    settings = tomllib.loads(write(tmp_path / "agent", endpoint, python).read_text())
    assert settings["process"] == {"python": python}


def test_configuration_that_is_there_is_left_as_it_is(endpoint: HubEndpoint, tmp_path: Path) -> None:
    config_file = write(tmp_path / "agent", endpoint)
    before = {path: path.read_bytes() for path in config_file.parent.iterdir()}
    for again in (
        lambda: write(tmp_path / "agent", endpoint),
        lambda: prepare_agent_folder(tmp_path / "agent"),
    ):
        with pytest.raises(PublishError, match="there already") as caught:
            again()
        assert str(config_file) in caught.value.message
    assert {path: path.read_bytes() for path in config_file.parent.iterdir()} == before


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PublishError, match=str(directory)):
            prepare_agent_folder(directory)


@pytest.mark.parametrize("text", ["", "a b", "a/b", "ä", "x" * 129, "a\n"])
def test_id_that_no_device_can_have_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="1 to 128") as caught:
        check_device_id(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize("text", ["d", "edge-1", "A:b.c+%_#*?!(),=@;$'", "x" * 128])
def test_id_that_a_device_can_have_is_taken(text: str) -> None:
    assert check_device_id(text) == text


# What became of a deployment.


class Time:
    """A clock that goes on only while something sleeps; `at` does things then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += 1
        self.now += seconds
        for due in [each for each in self._due if each[0] <= self.now]:
            self._due.remove(due)
            due[1]()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        self._due.append((seconds, action))


@pytest.fixture
def hub() -> HubDouble:
    """With one device, whose deployment is version 2."""
    double = HubDouble()
    double.create_device(DEVICE, edge=True)
    deploy(double, 1)
    return double


def deploy(hub: HubDouble, number: int) -> None:
    agent = {"properties.desired": {"schemaVersion": "1.1", "number": number}}
    hub.apply_configuration(DEVICE, {"modulesContent": {"$edgeAgent": agent}})


def report(
    hub: HubDouble,
    version: int,
    code: int = 200,
    description: str = "",
    release: Mapping[str, Any] | None = None,
) -> None:
    """What the device reports; without `release` it has another agent than ours."""
    patch: dict[str, Any] = {
        "lastDesiredVersion": version,
        "lastDesiredStatus": {"code": code, "description": description},
    }
    if release is not None:
        patch["edgewright"] = {"release": {"digest": "sha256:0", "result": None, **release}}
    hub.report(DEVICE, patch)


def result(hub: HubDouble) -> str:
    return read_rollout(hub, DEVICE).result


def test_device_without_a_deployment_has_none_to_wait_for(hub: HubDouble) -> None:
    hub.create_device("new", edge=True)
    rollout = read_rollout(hub, "new")
    assert (rollout.has_deployment, rollout.is_done, rollout.reported_version, rollout.code) == (
        False,
        False,
        0,
        None,
    )
    time = Time()
    with pytest.raises(NoDeploymentError) as caught:
        wait_for_rollout(hub, "new", 60, sleep=time.sleep, clock=time.clock)
    assert caught.value.next_command == "edgewright manifest apply FILE --device new"
    assert time.slept == 0


def test_nothing_reported_is_under_way(hub: HubDouble) -> None:
    rollout = read_rollout(hub, DEVICE)
    assert (rollout.has_deployment, rollout.desired_version, rollout.result) == (True, 2, "")


@pytest.mark.parametrize("outcome", [each.value for each in ReleaseResult])
def test_agents_own_result_for_this_version_counts(hub: HubDouble, outcome: str) -> None:
    report(hub, 2, 200 if outcome == "succeeded" else 500, release={"desiredVersion": 2, "result": outcome})
    assert result(hub) == outcome
    assert read_rollout(hub, DEVICE).is_done


@pytest.mark.parametrize("code", [400, 412])
def test_manifest_that_the_agent_cannot_use_is_rejected_although_the_last_release_succeeded(
    hub: HubDouble, code: int
) -> None:
    report(hub, 2, release={"desiredVersion": 2, "result": "succeeded"})
    deploy(hub, 2)
    assert result(hub) == "", "an old result is not one of the new version"
    report(hub, 3, code, "schemaVersion must be '1.0' or '1.1'", {"desiredVersion": 2, "result": "succeeded"})
    assert result(hub) == "rejected"


def test_attempt_that_will_be_repeated_is_under_way(hub: HubDouble) -> None:
    report(
        hub, 2, 500, "pull: registry refused; it will be tried again", {"desiredVersion": 2, "phase": "pull"}
    )
    assert result(hub) == ""


@pytest.mark.parametrize(
    ("code", "outcome"), [(200, "succeeded"), (406, ""), (500, ""), (400, "rejected"), (412, "rejected")]
)
def test_other_edge_agents_are_judged_by_their_status_code(hub: HubDouble, code: int, outcome: str) -> None:
    report(hub, 1, code)
    assert result(hub) == "", "it speaks of an older version"
    report(hub, 2, code)
    assert result(hub) == outcome


def test_wait_ends_as_soon_as_the_device_has_reported(hub: HubDouble) -> None:
    time = Time()
    time.at(3, lambda: report(hub, 1, release={"desiredVersion": 1, "result": "succeeded"}))
    time.at(10, lambda: report(hub, 1, 500, "", {"desiredVersion": 2, "phase": "pull"}))
    time.at(20, lambda: report(hub, 2, 500, "gone", {"desiredVersion": 2, "result": "failed-rolled-back"}))
    rollout = wait_for_rollout(hub, DEVICE, 60, sleep=time.sleep, clock=time.clock)
    assert (rollout.result, rollout.code, rollout.description) == ("failed-rolled-back", 500, "gone")
    assert 20 <= time.now < 21


def test_wait_is_for_the_newest_version(hub: HubDouble) -> None:
    time = Time()
    time.at(5, lambda: deploy(hub, 2))
    time.at(6, lambda: report(hub, 2, release={"desiredVersion": 2, "result": "superseded"}))
    time.at(9, lambda: report(hub, 3, release={"desiredVersion": 3, "result": "succeeded"}))
    rollout = wait_for_rollout(hub, DEVICE, 60, sleep=time.sleep, clock=time.clock)
    assert (rollout.desired_version, rollout.result) == (3, "succeeded")


def test_wait_that_takes_too_long_says_what_was_heard_last(hub: HubDouble) -> None:
    time = Time()
    with pytest.raises(WaitTimeoutError, match="reported nothing yet; is its agent running") as silent:
        wait_for_rollout(hub, DEVICE, 5, sleep=time.sleep, clock=time.clock)
    assert 5 <= time.now < 6
    assert silent.value.temporary
    assert silent.value.next_command == f"edgewright device show {DEVICE}"

    report(hub, 2, 500, "pull: no route to host", {"desiredVersion": 2, "phase": "pull"})
    with pytest.raises(WaitTimeoutError) as failing:
        wait_for_rollout(hub, DEVICE, 5, sleep=time.sleep, clock=time.clock)
    for part in (repr(DEVICE), "deployment 2", "in 5 s", "code 500", "no route to host"):
        assert part in failing.value.message


def test_wait_of_no_time_looks_once(hub: HubDouble) -> None:
    time = Time()
    with pytest.raises(WaitTimeoutError):
        wait_for_rollout(hub, DEVICE, 0, sleep=time.sleep, clock=time.clock)
    assert time.slept == 0
    report(hub, 2, release={"desiredVersion": 2, "result": "succeeded"})
    assert wait_for_rollout(hub, DEVICE, 0, sleep=time.sleep, clock=time.clock).is_done


@pytest.mark.parametrize("kind", [HubUnreachableError, HubNotFoundError])
def test_hub_that_goes_away_ends_the_wait_with_its_own_error(
    hub: HubDouble, kind: type[EdgewrightError]
) -> None:
    time = Time()

    def go_away() -> None:
        raise kind("hub is away")

    time.at(2, lambda: setattr(hub, "on_read", go_away))
    with pytest.raises(kind):
        wait_for_rollout(hub, DEVICE, 60, sleep=time.sleep, clock=time.clock)
    assert time.now < 3
