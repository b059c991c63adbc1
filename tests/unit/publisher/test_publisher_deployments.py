"""Manifests at a hub: a device's own taken out again, automatic deployments through Microsoft's SDK and through REST."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contracts_manifests import PASSWORD, complete
from publisher_configurations import ConfigurationsHub
from publisher_hub_double import HubDouble

from edge_contracts.manifest import DeploymentManifest
from publisher.deployments import (
    ContentChangedError,
    configuration_id,
    read_device_manifest,
    set_configuration,
)
from publisher.devices import NoDeploymentError
from publisher.errors import UsageError
from publisher.hub_client import (
    Configuration,
    HubClient,
    HubConflictError,
    HubNotFoundError,
    RestHubClient,
    SdkHubClient,
)
from publisher.manifest_diff import differences

CONTENT = {"modulesContent": complete()["modulesContent"]}
CONFIGURATION = Configuration(
    "north-1", "tags.site='north'", 10, CONTENT, {"team": "vision"}, {"done": "SELECT deviceId FROM devices"}
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ConfigurationsHub]:
    with ConfigurationsHub(tmp_path) as running:
        yield running


@pytest.fixture(params=["sdk", "rest"])
def client(request: pytest.FixtureRequest, hub: ConfigurationsHub) -> HubClient:
    if request.param == "rest":
        return RestHubClient(hub.connection_string, ca_file=hub.ca_file)
    pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")
    return SdkHubClient(hub.connection_string, ca_file=hub.ca_file)


# Automatic deployments.


def test_deployment_is_created_then_updated_under_its_etag(client: HubClient, hub: ConfigurationsHub) -> None:
    made, created = set_configuration(client, CONFIGURATION)
    assert (created, made.etag, hub.if_matches) == (True, "e1", [None])
    stored = hub.configurations["north-1"]
    assert stored["targetCondition"] == "tags.site='north'"
    assert (stored["priority"], stored["labels"], stored["schemaVersion"]) == (10, {"team": "vision"}, "1.0")
    assert stored["metrics"]["queries"] == {"done": "SELECT deviceId FROM devices"}
    assert stored["content"]["modulesContent"] == CONTENT["modulesContent"]

    changed, created = set_configuration(
        client, replace(CONFIGURATION, priority=11, target_condition="tags.site='south'")
    )
    assert (created, changed.priority, changed.etag) == (False, 11, "e2")
    assert hub.if_matches[-1] == '"e1"'
    assert hub.configurations["north-1"]["targetCondition"] == "tags.site='south'"


def test_other_content_under_the_same_id_is_refused_before_it_is_sent(
    client: HubClient, hub: ConfigurationsHub
) -> None:
    set_configuration(client, CONFIGURATION)
    other = DeploymentManifest.assemble((), {}).dump()
    with pytest.raises(ContentChangedError, match="priority above 10"):
        set_configuration(client, replace(CONFIGURATION, content=other))
    assert hub.if_matches == [None]


def test_change_by_somebody_else_is_a_conflict(client: HubClient, hub: ConfigurationsHub) -> None:
    made = client.put_configuration(CONFIGURATION)
    client.put_configuration(made)
    with pytest.raises(HubConflictError, match="PreconditionFailed"):
        client.put_configuration(made)
    with pytest.raises(HubConflictError, match="ConfigurationAlreadyExists"):
        client.put_configuration(CONFIGURATION)


def test_absent_one_is_none(client: HubClient) -> None:
    assert client.get_configuration("nobody") is None


def test_id_comes_from_the_content_unless_given() -> None:
    assert configuration_id(None, CONTENT) == configuration_id(None, dict(CONTENT))
    assert configuration_id(None, CONTENT) != configuration_id(None, {})
    assert configuration_id("north.1", CONTENT) == "north.1"
    for bad in ("", "North", "a b", "a/b", "x" * 129, "a{"):
        with pytest.raises(UsageError, match="--id"):
            configuration_id(bad, CONTENT)


def test_passwords_are_in_no_repr() -> None:
    assert PASSWORD not in repr(CONFIGURATION)


# A device's own.


def test_manifest_of_a_device_comes_back_as_it_was_given() -> None:
    hub = HubDouble()
    hub.create_device("d", edge=True)
    given = DeploymentManifest.parse(complete())
    hub.apply_configuration("d", given.dump())
    found = read_device_manifest(hub, "d")
    assert found == given
    assert differences(given, found) == []
    hub.apply_configuration("d", found.dump())
    assert read_device_manifest(hub, "d") == given


def test_device_without_a_deployment_and_no_device_are_told_apart() -> None:
    hub = HubDouble()
    hub.create_device("d", edge=True)
    with pytest.raises(NoDeploymentError, match="'d'") as caught:
        read_device_manifest(hub, "d")
    assert caught.value.next_command == "edgewright manifest apply FILE --device d"
    with pytest.raises(HubNotFoundError):
        read_device_manifest(hub, "nobody")


# Differences.


def test_differences_are_by_path_and_without_secrets() -> None:
    before, document = DeploymentManifest.parse(complete()), complete()
    agent = document["modulesContent"]["$edgeAgent"]["properties.desired"]
    agent["modules"]["scorer"]["env"]["LEVEL"]["value"] = "debug"
    agent["modules"]["scorer"]["settings"] |= {"createOptions": '{"HostConfig":{"Memory":9}}'}
    del agent["modules"]["scorer"]["settings"]["createOptions01"]
    agent["runtime"]["settings"]["registryCredentials"]["r1"]["password"] = "another-password"
    agent["modules"]["second"] = agent["modules"]["scorer"]
    del document["modulesContent"]["$edgeHub"]["properties.desired"]["routes"]["in"]
    found = {each.path: each for each in differences(before, DeploymentManifest.parse(document))}
    assert set(found) == {
        "modules.scorer.env.LEVEL",
        "modules.scorer.createOptions.HostConfig.Memory",
        "modules.second",
        "registryCredentials.registry.example.password",
        "routes.in",
    }
    level = found["modules.scorer.env.LEVEL"]
    assert (level.change, level.before, level.after) == ("changed", "info", "debug")
    assert (found["routes.in"].change, found["modules.second"].change) == ("removed", "added")
    assert "another-password" not in repr(found)
    assert PASSWORD not in repr(found)


def test_spelling_is_no_difference() -> None:
    document = complete()
    scorer = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]
    scorer["settings"]["createOptions"] = '{ "HostConfig" : {} }'
    del scorer["settings"]["createOptions01"]
    scorer["env"]["COUNT"]["value"] = "3"
    assert differences(DeploymentManifest.parse(complete()), DeploymentManifest.parse(document)) == []
