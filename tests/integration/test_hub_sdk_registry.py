"""The hub seen by Microsoft's service SDK, unmodified (azure-iot-hub)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hub_harness import HubProcess

pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")

from azure.iot.hub.models import Twin, TwinProperties
from azure.iot.hub.protocol.models import ConfigurationContent
from msrest.exceptions import HttpOperationError

pytestmark = pytest.mark.filterwarnings("ignore")

KEY = "cHJpbWFyeWtleXByaW1hcnlrZXlwcmltYXJ5a2V5MDE="
OTHER_KEY = "c2Vjb25kYXJ5a2V5c2Vjb25kYXJ5a2V5c2Vjb25kYXI="


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("registry") / "hub") as process:
        yield process


@pytest.fixture(scope="module")
def manager(hub: HubProcess) -> Any:
    return hub.registry_manager()


def status_of(call: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(HttpOperationError) as caught:
        call(*arguments, **options)
    response = caught.value.response
    return response.status_code, response.headers["iothub-errorcode"]


def desired(values: dict[str, Any]) -> Twin:
    return Twin(properties=TwinProperties(desired=values))


def test_device_is_created_read_updated_and_deleted(manager: Any) -> None:
    made = manager.create_device_with_sas("crud", KEY, OTHER_KEY, "enabled", status_reason="new")
    assert made.authentication.symmetric_key.primary_key == KEY
    assert manager.get_device("crud").etag == made.etag
    changed = manager.update_device_with_sas("crud", made.etag, OTHER_KEY, KEY, "disabled")
    assert (changed.status, changed.generation_id) == ("disabled", made.generation_id)
    assert changed.etag != made.etag
    manager.delete_device("crud", etag=changed.etag)
    assert status_of(manager.get_device, "crud") == (404, "DeviceNotFound")


def test_stale_etag_is_refused_and_the_quoted_wildcard_accepted(manager: Any) -> None:
    made = manager.create_device_with_sas("etags", "", "", "enabled")
    assert status_of(manager.update_device_with_sas, "etags", "c3RhbGU=", KEY, KEY, "enabled") == (
        412,
        "PreconditionFailed",
    )
    assert manager.get_device("etags").etag == made.etag
    manager.update_device_with_sas("etags", "*", KEY, KEY, "enabled")
    manager.delete_device("etags")


def test_creating_what_exists_is_a_conflict(manager: Any) -> None:
    manager.create_device_with_sas("twice", "", "", "enabled")
    assert status_of(manager.create_device_with_sas, "twice", "", "", "enabled") == (
        409,
        "DeviceAlreadyExists",
    )
    manager.create_module_with_sas("twice", "m", "", "", "")
    assert status_of(manager.create_module_with_sas, "twice", "m", "", "", "") == (
        409,
        "ModuleAlreadyExistsOnDevice",
    )


def test_creating_again_with_the_same_keys_is_no_conflict(manager: Any) -> None:
    made = manager.create_device_with_sas("again", KEY, OTHER_KEY, "enabled")
    assert (
        manager.create_device_with_sas("again", KEY, OTHER_KEY, "enabled").generation_id == made.generation_id
    )


def test_edge_device_has_the_two_modules_of_the_runtime(manager: Any) -> None:
    device = manager.create_device_with_sas("edge", "", "", "enabled", iot_edge=True)
    assert device.capabilities.iot_edge
    assert [module.module_id for module in manager.get_modules("edge")] == ["$edgeAgent", "$edgeHub"]
    assert status_of(manager.delete_module, "edge", "$edgeAgent") == (403, "OperationNotAllowed")


def test_module_is_created_read_updated_and_deleted(manager: Any) -> None:
    manager.create_device_with_sas("host", "", "", "enabled")
    made = manager.create_module_with_sas("host", "m", "IotEdge", KEY, OTHER_KEY)
    assert (made.managed_by, made.authentication.symmetric_key.secondary_key) == ("IotEdge", OTHER_KEY)
    changed = manager.update_module_with_sas("host", "m", "IotEdge", made.etag, OTHER_KEY, KEY)
    assert changed.authentication.symmetric_key.primary_key == OTHER_KEY
    manager.delete_module("host", "m")
    assert status_of(manager.get_module, "host", "m") == (404, "ModuleNotFound")
    assert status_of(manager.get_module, "nobody", "m") == (404, "DeviceNotFound")


def test_twin_is_patched_and_replaced(manager: Any) -> None:
    manager.create_device_with_sas("twin", "", "", "enabled")
    first = manager.get_twin("twin")
    patched = manager.update_twin(
        "twin", Twin(tags={"site": "a"}, properties=TwinProperties(desired={"a": {"b": 1, "c": 2}}))
    )
    assert patched.properties.desired["$version"] == first.properties.desired["$version"] + 1
    assert patched.properties.desired["$metadata"]["a"]["b"]["$lastUpdatedVersion"] == 2
    again = manager.update_twin("twin", desired({"a": {"b": None}}), patched.etag)
    assert again.properties.desired["a"] == {"c": 2}
    assert again.tags == {"site": "a"}
    assert status_of(manager.update_twin, "twin", desired({"x": 1}), patched.etag) == (
        412,
        "PreconditionFailed",
    )
    replaced = manager.replace_twin("twin", desired({"only": True}))
    assert set(replaced.properties.desired) == {"only", "$metadata", "$version"}
    assert not replaced.tags


def test_module_twin_is_patched(manager: Any) -> None:
    manager.create_device_with_sas("twins", "", "", "enabled")
    manager.create_module_with_sas("twins", "m", "", "", "")
    assert manager.update_module_twin("twins", "m", desired({"n": 1})).properties.desired["n"] == 1
    assert manager.get_module_twin("twins", "m").properties.desired["$version"] == 2


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({f"k{n}": "x" * 4000 for n in range(9)}, (403, "IotHubQuotaExceeded")),
        ({"k": "x" * 4097}, (400, "ArgumentInvalid")),
        ({"a.b": 1}, (400, "ArgumentInvalid")),
        ({"n": 2**52}, (400, "ArgumentInvalid")),
    ],
    ids=["32 KB", "4 KB string", "dot in a key", "large integer"],
)
def test_twin_limit_is_an_error_and_changes_nothing(
    hub: HubProcess, manager: Any, values: dict[str, Any], answer: tuple[int, str]
) -> None:
    if hub.request("GET", "/devices/limits")[0] == 404:
        hub.create_device("limits")
    before = manager.get_twin("limits")
    assert status_of(manager.update_twin, "limits", desired(values)) == answer
    assert manager.get_twin("limits").version == before.version


def test_statistics_and_lists_count_devices(manager: Any) -> None:
    before = manager.get_device_registry_statistics()
    manager.create_device_with_sas("counted", "", "", "disabled")
    after = manager.get_device_registry_statistics()
    assert after.total_device_count == before.total_device_count + 1
    assert after.disabled_device_count == before.disabled_device_count + 1
    assert "counted" in [device.device_id for device in manager.get_devices(1000)]
    assert manager.get_service_statistics().connected_device_count == 0


def test_bulk_lists_what_failed_and_does_the_rest(hub: HubProcess) -> None:
    hub.create_device("bulk-0")
    entries = [{"id": f"bulk-{n}", "importMode": "create", "status": "enabled"} for n in range(3)]
    status, body = hub.request("POST", "/devices", entries)
    assert status == 400
    assert [(error["deviceId"], error["errorCode"]) for error in body["errors"]] == [
        ("bulk-0", "DeviceAlreadyExists")
    ]
    assert hub.request("GET", "/devices/bulk-2")[0] == 200
    assert hub.request("POST", "/devices", [{"id": "bulk-1", "importMode": "delete"}])[1]["isSuccessful"]
    assert hub.request("GET", "/devices/bulk-1")[0] == 404


def test_content_sets_all_modules_of_one_edge_device(hub: HubProcess, manager: Any) -> None:
    hub.create_device("deployed", iot_edge=True)
    content = {
        "$edgeAgent": {
            "properties.desired": {"schemaVersion": "1.1", "modules": {"scorer": {"version": "1.0"}}}
        },
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
        "tuned": {"properties.desired": {"level": 3}},
    }
    configurations = hub.configuration_manager()
    configurations.apply_configuration_on_edge_device(
        "deployed", ConfigurationContent(modules_content=content)
    )
    assert [module.module_id for module in manager.get_modules("deployed")] == [
        "$edgeAgent",
        "$edgeHub",
        "scorer",
        "tuned",
    ]
    assert manager.get_module_twin("deployed", "tuned").properties.desired["level"] == 3
    agent = manager.get_module_twin("deployed", "$edgeAgent").properties.desired
    assert (agent["$version"], agent["modules"]) == (2, {"scorer": {"version": "1.0"}})

    del content["$edgeAgent"]["properties.desired"]["modules"]["scorer"]
    content["tuned"]["properties.desired"] = {"big": "x" * 5000}
    with pytest.raises(HttpOperationError) as caught:
        configurations.apply_configuration_on_edge_device(
            "deployed", ConfigurationContent(modules_content=content)
        )
    assert caught.value.response.status_code == 400
    assert "modulesContent.tuned" in caught.value.response.json()["Message"]
    assert manager.get_module_twin("deployed", "$edgeAgent").properties.desired["$version"] == 2


def test_content_for_a_device_that_is_no_edge_device_is_refused(hub: HubProcess) -> None:
    hub.create_device("leaf")
    content = {"modulesContent": {"m": {"properties.desired": {}}}}
    status, body = hub.request("POST", "/devices/leaf/applyConfigurationContent", content)
    assert (status, "edge device" in body["Message"]) == (400, True)
    assert hub.request("GET", "/devices/leaf/modules") == (200, [])


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({}, "modulesContent"),
        ({"modulesContent": {"m": {}}}, "modulesContent.m.properties.desired"),
        (
            {"modulesContent": {"m": {"properties.desired.modules.x": {}}}},
            "modulesContent.m.properties.desired.modules.x",
        ),
        ({"modulesContent": {"m": {"properties.desired": 3}}}, "modulesContent.m.properties.desired"),
        ({"modulesContent": {"m n": {"properties.desired": {}}}}, "moduleId"),
    ],
)
def test_bad_content_names_the_path(hub: HubProcess, content: dict[str, Any], where: str) -> None:
    if hub.request("GET", "/devices/strict")[0] == 404:
        hub.create_device("strict", iot_edge=True)
    status, body = hub.request("POST", "/devices/strict/applyConfigurationContent", content)
    assert status == 400
    assert f";{where} must be" in body["Message"]


def test_method_of_an_absent_device_is_not_online(hub: HubProcess, manager: Any) -> None:
    from azure.iot.hub.models import CloudToDeviceMethod

    hub.create_device("away")
    assert status_of(manager.invoke_device_method, "away", CloudToDeviceMethod(method_name="m")) == (
        404,
        "DeviceNotOnline",
    )


def test_what_is_not_built_says_so(hub: HubProcess) -> None:
    status, body = hub.request("GET", "/configurations")
    assert status == 404
    assert "does not serve GET /configurations" in body["Message"]


def test_wrong_key_and_missing_token_are_refused(hub: HubProcess) -> None:
    from edge_contracts.sas import make_sas

    wrong = make_sas(f"{hub.host}:{hub.https_port}", KEY, expiry=2**33, policy="iothubowner")
    for token in (wrong, "Basic eDp5", "SharedAccessSignature sr=x&sig=y&se=1"):
        status, body = hub.request("GET", "/devices", token=token)
        assert status == 401
        assert body["Message"].startswith("ErrorCode:IotHubUnauthorizedAccess")


def test_token_may_name_the_host_with_or_without_port_and_as_localhost_only_when_called_so(
    hub: HubProcess,
) -> None:
    from edge_contracts.sas import ConnectionString, make_sas

    key = ConnectionString.parse(hub.connection_string).shared_access_key.reveal()

    def status(audience: str, **headers: str) -> int:
        token = make_sas(audience, key, expiry=2**33, policy="iothubowner")
        return hub.request("GET", "/devices", token=token, headers=headers)[0]

    assert status(hub.host) == 200
    assert status(f"{hub.host}:{hub.https_port}") == 200
    assert status("localhost", Host=f"localhost:{hub.https_port}") == 200
    assert status("localhost") == 401


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a": 1e999}', '{"tags": {"a": "\\ud800"}}', "{", "NaN"])
def test_body_that_is_no_json_is_refused(hub: HubProcess, body: str) -> None:
    import ssl
    import urllib.error
    import urllib.request

    from edge_contracts.sas import ConnectionString, make_sas

    owner = ConnectionString.parse(hub.connection_string)
    token = make_sas(hub.host, owner.shared_access_key.reveal(), expiry=2**33, policy="iothubowner")
    request = urllib.request.Request(
        f"https://{owner.authority}/twins/x", body.encode(), {"Authorization": token}, method="PATCH"
    )
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener.open(request, timeout=10)
    with caught.value as error:
        assert (error.code, error.headers["iothub-errorcode"]) == (400, "IotHubFormatError")
