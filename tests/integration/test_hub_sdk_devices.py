"""The hub seen by Microsoft's device SDK, unmodified (azure-iot-device), driven by the service SDK."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_harness import HubProcess, wait_until

pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")

from azure.iot.device import Message, MethodResponse
from azure.iot.device.exceptions import ClientError, CredentialError
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from azure.iot.hub.protocol.models import ConfigurationContent
from msrest.exceptions import HttpOperationError

from edge_contracts.sas import ConnectionString, make_sas

pytestmark = pytest.mark.filterwarnings("ignore")

OTHER_KEY = "c2Vjb25kYXJ5a2V5c2Vjb25kYXJ5a2V5c2Vjb25kYXI="


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("devices") / "hub") as process:
        yield process


@pytest.fixture(scope="module")
def manager(hub: HubProcess) -> Any:
    return hub.registry_manager()


def desired(values: dict[str, Any]) -> Twin:
    return Twin(properties=TwinProperties(desired=values))


def collect_patches(client: Any) -> list[dict[str, Any]]:
    """What the hub pushes; the SDK itself makes a patch of the twin's first version when it connects."""
    patches: list[dict[str, Any]] = []

    def keep(patch: dict[str, Any]) -> None:
        if patch["$version"] > 1:
            patches.append(patch)

    client.on_twin_desired_properties_patch_received = keep
    return patches


def echo(client: Any) -> None:
    """Answer every method with its own name and payload."""

    def answer(request: Any) -> None:
        payload = {"name": request.name, "payload": request.payload}
        client.send_method_response(MethodResponse.create_from_method_request(request, 201, payload))

    client.on_method_request_received = answer


def test_telemetry_is_kept_with_its_properties(hub: HubProcess) -> None:
    hub.create_device("talker")
    message = Message(
        '{"t": 21}', message_id="id 1", content_encoding="utf-8", content_type="application/json"
    )
    message.correlation_id = "c"
    message.custom_properties["site & more"] = "a=b"
    with hub.device_client("talker") as client:
        client.send_message(message)
    [kept] = hub.telemetry("talker")
    assert base64.b64decode(kept["body"]) == b'{"t": 21}'
    assert (kept["deviceId"], kept["moduleId"], kept["properties"]) == (
        "talker",
        None,
        {"site & more": "a=b"},
    )
    expected = {
        "message-id": "id 1",
        "correlation-id": "c",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "iothub-connection-device-id": "talker",
    }
    assert expected.items() <= kept["systemProperties"].items()


def test_module_sends_to_an_output(hub: HubProcess, manager: Any) -> None:
    hub.create_device("gate")
    manager.create_module_with_sas("gate", "m", "", "", "")
    with hub.module_client("gate", "m") as client:
        client.send_message_to_output(Message("1"), "output1")
    [kept] = hub.telemetry("gate")
    assert (kept["moduleId"], kept["systemProperties"]["output-name"]) == ("m", "output1")


def test_reader_waits_for_the_next_message(hub: HubProcess) -> None:
    hub.create_device("slow")
    end = hub.request("GET", "/edgewright/telemetry?from=end")[1]["next"]
    assert hub.telemetry("slow", start=end, wait_s=0.2) == []
    with hub.device_client("slow") as client:
        client.connect()
        client.send_message(Message("first"))
        began = time.monotonic()
        assert [base64.b64decode(m["body"]) for m in hub.telemetry("slow", start=end, wait_s=20)] == [
            b"first"
        ]
    assert time.monotonic() - began < 10


def test_twin_travels_both_ways(hub: HubProcess, manager: Any) -> None:
    hub.create_device("twin")
    with hub.device_client("twin") as client:
        patches = collect_patches(client)
        assert client.get_twin() == {"desired": {"$version": 1}, "reported": {"$version": 1}}
        manager.update_twin("twin", desired({"rate": 5, "old": 1}))
        wait_until(lambda: len(patches) == 1)
        manager.update_twin("twin", desired({"old": None}))
        wait_until(lambda: len(patches) == 2)
        manager.replace_twin("twin", desired({"rate": 6}))
        wait_until(lambda: len(patches) == 3)
        client.patch_twin_reported_properties({"rate": 6, "gone": None})
        assert client.get_twin() == {
            "desired": {"rate": 6, "$version": 4},
            "reported": {"rate": 6, "$version": 2},
        }
        assert manager.get_twin("twin").connection_state == "Connected"
    assert patches == [
        {"rate": 5, "old": 1, "$version": 2},
        {"old": None, "$version": 3},
        {"rate": 6, "$version": 4},
    ]
    twin = manager.get_twin("twin")
    assert (twin.properties.reported["rate"], twin.properties.reported["$version"]) == (6, 2)
    wait_until(lambda: manager.get_twin("twin").connection_state == "Disconnected")


def test_reported_patch_over_the_limit_is_an_error_for_the_device(hub: HubProcess, manager: Any) -> None:
    hub.create_device("chatty")
    with hub.device_client("chatty") as client:
        client.connect()
        with pytest.raises(ClientError) as caught:
            client.patch_twin_reported_properties({f"k{n}": "x" * 4000 for n in range(9)})
        assert "403" in str(caught.value.__cause__)
        client.patch_twin_reported_properties({"k": 1})
    assert manager.get_twin("chatty").properties.reported["$version"] == 2


def test_deployment_reaches_the_edge_agent(hub: HubProcess) -> None:
    hub.create_device("edge", iot_edge=True)
    content = {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": {"scorer": {"a": 1}}}}
    }
    configurations = hub.configuration_manager()
    with hub.module_client("edge", "$edgeAgent") as client:
        patches = collect_patches(client)
        client.get_twin()
        configurations.apply_configuration_on_edge_device(
            "edge", ConfigurationContent(modules_content=content)
        )
        wait_until(lambda: len(patches) == 1)
        content["$edgeAgent"]["properties.desired"]["modules"] = {"other": {}}
        configurations.apply_configuration_on_edge_device(
            "edge", ConfigurationContent(modules_content=content)
        )
        wait_until(lambda: len(patches) == 2)
        # The same content once more is no change.
        configurations.apply_configuration_on_edge_device(
            "edge", ConfigurationContent(modules_content=content)
        )
        assert client.get_twin()["desired"]["$version"] == 3
    assert patches == [
        {"schemaVersion": "1.1", "modules": {"scorer": {"a": 1}}, "$version": 2},
        {"modules": {"scorer": None, "other": {}}, "$version": 3},
    ]


def test_method_is_answered(hub: HubProcess, manager: Any) -> None:
    hub.create_device("worker")
    manager.create_module_with_sas("worker", "m", "", "", "")
    with hub.device_client("worker") as device, hub.module_client("worker", "m") as module:
        echo(device)
        echo(module)
        call = CloudToDeviceMethod(method_name="do it", payload={"n": 1}, connect_timeout_in_seconds=10)
        for result in (
            manager.invoke_device_method("worker", call),
            manager.invoke_device_module_method("worker", "m", call),
        ):
            assert (result.status, result.payload) == (201, {"name": "do it", "payload": {"n": 1}})


def test_method_without_an_answer_times_out(hub: HubProcess, manager: Any) -> None:
    hub.create_device("deaf")
    with hub.device_client("deaf") as client:
        client.on_method_request_received = lambda _request: None
        call = CloudToDeviceMethod(
            method_name="m", response_timeout_in_seconds=5, connect_timeout_in_seconds=10
        )
        began = time.monotonic()
        with pytest.raises(HttpOperationError) as caught:
            manager.invoke_device_method("deaf", call)
    assert (caught.value.response.status_code, time.monotonic() - began >= 5) == (504, True)


def test_subscriptions_outlive_the_connection(hub: HubProcess, manager: Any) -> None:
    hub.create_device("returns")
    with hub.device_client("returns") as client:
        patches = collect_patches(client)
        echo(client)
        client.connect()
        client.disconnect()
        client.connect()
        manager.update_twin("returns", desired({"a": 1}))
        wait_until(lambda: {"a": 1, "$version": 2} in patches)
        assert manager.invoke_device_method("returns", CloudToDeviceMethod(method_name="m")).status == 201


def test_either_key_opens_and_a_wrong_one_does_not(hub: HubProcess, manager: Any) -> None:
    keys = hub.create_device("keys").authentication.symmetric_key
    for key in (keys.primary_key, keys.secondary_key):
        with hub.device_client(
            "keys", connection_string=hub.device_connection_string("keys", key=key)
        ) as client:
            client.connect()
    wrong = hub.device_connection_string("keys", key=OTHER_KEY)
    with hub.device_client("keys", connection_string=wrong) as client, pytest.raises(CredentialError):
        client.connect()


def test_unknown_device_is_refused(hub: HubProcess) -> None:
    text = f"HostName={hub.host};DeviceId=nobody;SharedAccessKey={OTHER_KEY}"
    with hub.device_client("nobody", connection_string=text) as client, pytest.raises(CredentialError):
        client.connect()


def test_disabling_ends_the_connection_and_refuses_the_next(hub: HubProcess, manager: Any) -> None:
    made = hub.create_device("off")
    manager.create_module_with_sas("off", "m", "", "", "")
    keys = made.authentication.symmetric_key
    with hub.device_client("off", connection_retry=False) as client:
        client.connect()
        manager.update_device_with_sas("off", made.etag, keys.primary_key, keys.secondary_key, "disabled")
        wait_until(lambda: not client.connected, what="the end of the connection")
        with pytest.raises(CredentialError):
            client.connect()
    with hub.module_client("off", "m", connection_retry=False) as client, pytest.raises(CredentialError):
        client.connect()


def test_deleted_device_is_cut_off(hub: HubProcess, manager: Any) -> None:
    hub.create_device("gone")
    with hub.device_client("gone", connection_retry=False) as client:
        client.connect()
        manager.delete_device("gone")
        wait_until(lambda: not client.connected, what="the end of the connection")


def test_new_connection_takes_over(hub: HubProcess) -> None:
    hub.create_device("one")
    with hub.device_client("one", connection_retry=False) as old, hub.device_client("one") as new:
        old.connect()
        new.connect()
        wait_until(lambda: not old.connected, what="the take-over")
        new.send_message(Message("still here"))
    [kept] = hub.telemetry("one")
    assert base64.b64decode(kept["body"]) == b"still here"


def test_policy_token_and_expiry(hub: HubProcess) -> None:
    from azure.iot.device import IoTHubDeviceClient

    hub.create_device("token")
    key = ConnectionString.parse(hub.connection_string).shared_access_key.reveal()
    expiry = int(time.time()) + 2
    token = make_sas(f"{hub.host}/devices/token", key, expiry=expiry, policy="iothubowner")
    client = IoTHubDeviceClient.create_from_sastoken(
        token, server_verification_cert=hub.ca_file.read_text(), connection_retry=False
    )
    try:
        client.connect()
        wait_until(lambda: not client.connected, timeout_s=10, what="the end of the token")
        assert time.time() >= expiry
    finally:
        client.shutdown()


def device_token(hub: HubProcess, device: str) -> str:
    return make_sas(
        f"{hub.host}/devices/{device}",
        hub.registry_manager().get_device(device).authentication.symmetric_key.primary_key,
        expiry=int(time.time()) + 60,
    )


def test_device_manages_its_own_modules(hub: HubProcess) -> None:
    """What iotedge's identity service sends (api-version 2017-11-08-preview)."""
    hub.create_device("manager", iot_edge=True)
    hub.create_device("neighbour", iot_edge=True)
    token, version = device_token(hub, "manager"), "?api-version=2017-11-08-preview"
    module = f"/devices/manager/modules/scorer{version}"
    keys = {"primaryKey": OTHER_KEY, "secondaryKey": OTHER_KEY}
    body = {
        "moduleId": "scorer",
        "managedBy": "IotEdge",
        "deviceId": "manager",
        "authentication": {"type": "sas", "symmetricKey": keys},
    }
    assert hub.request("PUT", module, body, token=token)[0] == 201
    assert hub.request("PUT", module, body, token=token)[0] == 201, (
        "a retry with the same keys is no conflict"
    )
    status, made = hub.request("GET", module, token=token)
    assert (status, made["authentication"]["symmetricKey"]) == (200, keys)
    status, modules = hub.request("GET", f"/devices/manager/modules{version}", token=token)
    assert [entry["moduleId"] for entry in modules] == ["$edgeAgent", "$edgeHub", "scorer"]
    system = {**body, "moduleId": "$edgeAgent"}
    path = f"/devices/manager/modules/$edgeAgent{version}"
    assert hub.request("PUT", path, system, token=token)[0] == 409
    assert hub.request("PUT", path, system, token=token, headers={"If-Match": "*"})[0] == 200
    text = hub.device_connection_string("manager", "$edgeAgent", key=OTHER_KEY)
    with hub.module_client("manager", "$edgeAgent", connection_string=text) as client:
        client.connect()
    assert hub.request("DELETE", module, token=token, headers={"If-Match": "*"})[0] == 204

    for method, other in (
        ("GET", "/devices/neighbour/modules"),
        ("PUT", "/devices/neighbour/modules/scorer"),
        ("DELETE", "/devices/neighbour/modules/$edgeHub"),
        ("GET", "/devices/manager"),
        ("GET", "/twins/manager"),
        ("GET", "/devices"),
        ("POST", "/devices/manager/applyConfigurationContent"),
    ):
        assert hub.request(method, f"{other}{version}", token=token)[0] == 401, (method, other)


def test_hub_restart_keeps_everything(tmp_path: Path) -> None:
    with HubProcess(tmp_path / "hub") as hub:
        hub.create_device("d")
        manager = hub.registry_manager()
        manager.create_module_with_sas("d", "m", "IotEdge", OTHER_KEY, OTHER_KEY)
        manager.update_twin("d", Twin(tags={"t": 1}, properties=TwinProperties(desired={"a": 1})))
        credential = hub.request("POST", "/edgewright/registry/credentials", {"repository": "digits"})[1]
        with hub.device_client("d") as client:
            patches = collect_patches(client)
            echo(client)
            client.patch_twin_reported_properties({"r": 1})
            client.send_message(Message("before"))
            before = (manager.get_twin("d").as_dict(), manager.get_module("d", "m").as_dict())
            ca, text = hub.ca_file.read_text(), hub.connection_string
            hub.restart()
            assert (hub.ca_file.read_text(), hub.connection_string) == (ca, text)
            # Rather than the SDK's 10 s until its next attempt; it does not subscribe again, as after any reconnect.
            wait_until(lambda: not client.connected, what="the end of the connection")
            client.connect()
            assert manager.get_twin("d").connection_state == "Connected"
            manager.update_twin("d", desired({"b": 2}))
            wait_until(lambda: {"b": 2, "$version": 3} in patches)
            assert manager.invoke_device_method("d", CloudToDeviceMethod(method_name="m")).status == 201
            client.send_message(Message("after"))
        twin = manager.get_twin("d").as_dict()
        volatile = ("connection_state", "last_activity_time", "connection_state_updated_time")
        for document in (twin, *before, module := manager.get_module("d", "m").as_dict()):
            for name in volatile:
                document.pop(name, None)
        assert module == before[1]
        assert (twin["tags"], twin["properties"]["reported"]) == (
            before[0]["tags"],
            before[0]["properties"]["reported"],
        )
        kept = hub.telemetry("d")
        assert [base64.b64decode(message["body"]) for message in kept] == [b"before", b"after"]
        assert [message["offset"] for message in kept] == [1, 2]
        listed = hub.request("GET", "/edgewright/registry/credentials")[1]
        assert [entry["username"] for entry in listed] == [credential["username"]]
        assert "password" not in json.dumps(listed)
