"""What `HubClient` does at a hub, by Microsoft's SDK and by plain REST; and what it says when the hub fails it."""

from __future__ import annotations

import base64
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from hub_faults import KEY, FaultyHub
from hub_harness import HubProcess
from publisher_hub_double import HubDouble

from edge_contracts.errors import ContractError
from edge_contracts.sas import ConnectionString
from iot_hub.pki import ensure_pki
from publisher.hub_client import (
    HubClient,
    HubClientError,
    HubConflictError,
    HubDeviceOfflineError,
    HubNotFoundError,
    HubRefusedError,
    HubRequestRejectedError,
    HubUnreachableError,
    HubUntrustedError,
    RestHubClient,
    SdkHubClient,
    connect,
)
from publisher.signed_in import SignedIn, SignInError

Kind = type[SdkHubClient] | type[RestHubClient]
AGENT = "$edgeAgent"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub") / "data") as process:
        yield process


@pytest.fixture(params=[SdkHubClient, RestHubClient], ids=["sdk", "rest"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    _skip_without_sdk(chosen)
    return chosen


@pytest.fixture(params=["sdk", "rest", "double"])
def client(request: pytest.FixtureRequest, hub: HubProcess) -> HubClient:
    """What acts at a hub: both clients, and the double that other tests use in their place."""
    if request.param == "double":
        return HubDouble(authority(hub))
    kind: Kind = {"sdk": SdkHubClient, "rest": RestHubClient}[request.param]
    _skip_without_sdk(kind)
    return kind(hub.connection_string, ca_file=hub.ca_file)


def _skip_without_sdk(kind: Kind) -> None:
    if kind is SdkHubClient:
        pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")


@pytest.fixture
def device() -> str:
    """An id that no other test has."""
    return f"device-{next(_numbers)}"


def authority(hub: HubProcess) -> str:
    return f"{hub.host}:{hub.https_port}"


def content(**twins: dict[str, Any]) -> dict[str, Any]:
    """A deployment's content; `agent` and `hub` are the system modules' desired properties."""
    names = {"agent": AGENT, "hub": "$edgeHub"}
    return {
        "modulesContent": {
            names.get(name, name): {"properties.desired": desired} for name, desired in twins.items()
        }
    }


def own(section: Any) -> dict[str, Any]:
    """Properties without what the hub adds."""
    return {key: value for key, value in section.items() if not key.startswith("$")}


def with_key(connection_string: str, key: bytes) -> str:
    return (
        connection_string.rpartition("SharedAccessKey=")[0]
        + f"SharedAccessKey={base64.b64encode(key).decode()}"
    )


def refused(call: Callable[[], object], kind: type[HubClientError], *parts: str) -> HubClientError:
    """The call failed so, naming these, and without a secret."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    for part in parts:
        assert part in error.message
    for secret in ("SharedAccessSignature", "sig=", KEY):
        assert secret not in f"{error.message} {error!r}"
    return error


# Identities.


def test_created_device_is_the_one_that_is_got_and_listed(client: HubClient, device: str) -> None:
    created = client.create_device(device, edge=True)
    assert (created.device_id, created.enabled, created.is_edge, created.connected) == (
        device,
        True,
        True,
        False,
    )
    assert len(base64.b64decode(created.primary_key.reveal())) == 32
    assert created.primary_key.reveal() not in repr(created)
    assert client.get_device(device) == created
    assert created in client.list_devices()


def test_devices_are_found_by_a_condition_on_their_twins(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    client.update_tags(device, {"site": device})
    [found] = client.find_devices(f"tags.site = '{device}' AND capabilities.iotEdge = true")
    assert (found.device_id, found.enabled, found.is_edge, found.connected) == (device, True, True, False)
    assert found.primary_key.reveal() == ""
    assert client.find_devices(f"tags.site = '{device}' AND status = 'disabled'") == []


def test_bad_condition_is_refused_with_its_place(client: HubClient, hub: HubProcess) -> None:
    def call() -> object:
        return client.find_devices("tags.site = ")

    refused(call, HubRequestRejectedError, "400", "at character 41: expected a property", authority(hub))


def test_device_without_modules_is_no_edge_device(client: HubClient, device: str) -> None:
    client.create_device(device, edge=False)
    assert not client.get_device(device).is_edge


def test_device_is_created_once(client: HubClient, device: str, hub: HubProcess) -> None:
    created = client.create_device(device, edge=True)
    refused(lambda: client.create_device(device, edge=False), HubConflictError, device, "409", authority(hub))
    assert client.get_device(device) == created


def test_deleted_device_is_gone(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    client.delete_device(device)
    for call in (client.get_device, client.get_twin, client.delete_device):
        error = refused(lambda call=call: call(device), HubNotFoundError, device)  # type: ignore[misc]
        assert error.next_command == "edgewright device list"


@pytest.mark.parametrize("name", ["a:b.c+d%e_f", "all#of*it?!", "(),=@;$'"])
def test_every_id_that_the_hub_allows_travels(client: HubClient, device: str, name: str) -> None:
    device = f"{device}-{name}"
    client.create_device(device, edge=False)
    assert client.get_device(device).device_id == device
    assert client.get_twin(device).device_id == device
    client.delete_device(device)


# Twins.


def test_new_edge_device_has_empty_twins(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    twin, agent = client.get_twin(device), client.get_twin(device, AGENT)
    assert (twin.device_id, twin.module_id) == (device, None)
    assert (agent.device_id, agent.module_id) == (device, AGENT)
    for each in (twin, agent):
        assert (own(each.desired), own(each.reported), each.tags, each.connected) == ({}, {}, {}, False)
        assert each.desired_version == 1


def test_twin_of_a_module_that_is_not_there_is_not_found(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    refused(lambda: client.get_twin(device, "scorer"), HubNotFoundError, device, "scorer")


def test_tags_merge_and_null_removes(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    client.update_tags(device, {"site": "north", "line": {"number": 1, "shift": "late"}})
    changed = client.update_tags(device, {"site": None, "line": {"number": 2}})
    assert changed.tags == {"line": {"number": 2, "shift": "late"}}
    assert client.get_twin(device).tags == changed.tags


def test_bad_tag_changes_nothing(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    client.update_tags(device, {"site": "north"})
    refused(
        lambda: client.update_tags(device, {"site": "south", "a.b": "x"}),
        HubRequestRejectedError,
        "a.b",
        "400",
    )
    assert client.get_twin(device).tags == {"site": "north"}


# Deployments.


def test_deployment_replaces_the_desired_properties_and_versions_grow(client: HubClient, device: str) -> None:
    client.create_device(device, edge=True)
    client.apply_configuration(
        device, content(agent={"modules": {"scorer": {}}, "old": 1}, hub={"routes": {}})
    )
    first = client.get_twin(device, AGENT)
    assert own(first.desired) == {"modules": {"scorer": {}}, "old": 1}
    assert client.get_twin(device, "scorer").module_id == "scorer"

    client.apply_configuration(device, content(agent={"modules": {}}, hub={"routes": {"up": "x"}}))
    second = client.get_twin(device, AGENT)
    assert own(second.desired) == {"modules": {}}
    assert second.desired_version == first.desired_version + 1
    assert own(client.get_twin(device, "$edgeHub").desired) == {"routes": {"up": "x"}}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"modulesContent": {}}, "modulesContent must be an object with at least one module"),
        ({"modulesContent": {AGENT: {"desired": {}}}}, f"modulesContent.{AGENT}.desired"),
        (content(agent={"a.b": 1}), "a.b"),
        (content(agent={"blob": {str(n): "x" * 4000 for n in range(9)}}), "32768"),
    ],
    ids=["empty", "no section", "bad key", "too large"],
)
def test_bad_deployment_is_rejected_in_the_hubs_words(
    client: HubClient, device: str, bad: dict[str, Any], words: str
) -> None:
    client.create_device(device, edge=True)
    client.apply_configuration(device, content(agent={"good": 1}))
    before = client.get_twin(device, AGENT)
    refused(lambda: client.apply_configuration(device, bad), HubRequestRejectedError, words, device)
    assert client.get_twin(device, AGENT).desired == before.desired


def test_deployment_needs_an_edge_device_that_is_there(client: HubClient, device: str) -> None:
    refused(lambda: client.apply_configuration(device, content(agent={})), HubNotFoundError, device)


# Methods.


@pytest.mark.parametrize("module", [None, AGENT])
def test_method_on_an_offline_device_says_so(client: HubClient, device: str, module: str | None) -> None:
    client.create_device(device, edge=True)
    error = refused(
        lambda: client.invoke_method(device, module, "ping", {"a": 1}),
        HubDeviceOfflineError,
        "'ping'",
        device,
        "not connected",
    )
    assert error.temporary


def test_method_of_a_device_that_is_not_there_is_not_found(client: HubClient, device: str) -> None:
    refused(lambda: client.invoke_method(device, None, "ping", None), HubNotFoundError, device)


@pytest.mark.filterwarnings("ignore")  # Microsoft's device SDK, which is the other end here
def test_method_gets_through_and_its_answer_comes_back(kind: Kind, device: str, hub: HubProcess) -> None:
    from azure.iot.device import MethodResponse

    client = kind(hub.connection_string, ca_file=hub.ca_file)
    key = client.create_device(device, edge=False).primary_key.reveal()
    text = f"HostName={hub.host};DeviceId={device};SharedAccessKey={key}"
    with hub.device_client(device, connection_string=text) as sdk:

        def answer(request: Any) -> None:
            sdk.send_method_response(
                MethodResponse.create_from_method_request(request, 207, {request.name: request.payload})
            )

        sdk.on_method_request_received = answer
        sdk.connect()
        assert client.get_device(device).connected
        result = client.invoke_method(device, None, "echo", {"a": [1, None]}, timeout_s=10)
    assert (result.status, result.payload) == (207, {"echo": {"a": [1, None]}})


# When the hub does not take part.


def test_wrong_key_is_refused(kind: Kind, hub: HubProcess) -> None:
    stranger = kind(with_key(hub.connection_string, b"x" * 32), ca_file=hub.ca_file)
    error = refused(stranger.list_devices, HubRefusedError, "401", authority(hub))
    assert error.next_command == "edgewright hub status"
    assert not error.temporary


def test_hub_that_is_down_is_named_at_once(kind: Kind, hub: HubProcess) -> None:
    closed = hub.connection_string.replace(f":{hub.https_port}", ":1")
    client = kind(closed, ca_file=hub.ca_file)
    started = time.monotonic()
    error = refused(client.list_devices, HubUnreachableError, f"{hub.host}:1", "refused")
    assert time.monotonic() - started < 3
    assert error.temporary
    assert error.next_command == "edgewright hub status"


def test_host_without_an_address_is_named(kind: Kind, hub: HubProcess) -> None:
    away = hub.connection_string.replace(hub.host, "hub.invalid")
    refused(
        kind(away, ca_file=hub.ca_file).list_devices, HubUnreachableError, f"hub.invalid:{hub.https_port}"
    )


def test_certificate_of_another_authority_is_not_trusted(kind: Kind, hub: HubProcess, tmp_path: Path) -> None:
    other = ensure_pki(tmp_path, ["127.0.0.1"]).ca_cert
    client = kind(hub.connection_string, ca_file=other)
    error = refused(client.list_devices, HubUntrustedError, "certificate", authority(hub))
    assert not error.temporary


def test_public_authorities_do_not_make_it_trusted(kind: Kind, hub: HubProcess) -> None:
    refused(kind(hub.connection_string).list_devices, HubUntrustedError, "certificate")


def test_authority_file_that_is_gone_is_an_error_of_ours(kind: Kind, hub: HubProcess, tmp_path: Path) -> None:
    client = kind(hub.connection_string, ca_file=tmp_path / "none.pem")
    refused(client.list_devices, HubUnreachableError, authority(hub))


def test_plain_server_on_the_port_is_no_hub(kind: Kind, hub: HubProcess) -> None:
    registry = hub.connection_string.replace(f":{hub.https_port}", f":{hub.ready['registry']}")
    refused(kind(registry, ca_file=hub.ca_file).list_devices, HubUnreachableError, hub.registry_address)


def test_proxy_of_the_environment_is_not_asked_for_ones_own_hub(
    kind: Kind, hub: HubProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    kind(hub.connection_string, ca_file=hub.ca_file).list_devices()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    with FaultyHub(tmp_path_factory.mktemp("faulty")) as server:
        yield server


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_hub_in_trouble_is_quoted_and_asked_once(kind: Kind, faulty: FaultyHub, status: int) -> None:
    faulty.answer(status, "ServerBusy", "try again   later")
    client = kind(faulty.connection_string, ca_file=faulty.ca_file)
    for call in (client.list_devices, lambda: client.invoke_method("d", None, "open valve", None)):
        before = faulty.requests
        error = refused(call, HubRequestRejectedError, f"{status} ServerBusy: try again later")
        assert error.temporary
        assert faulty.requests == before + 1


def test_long_answer_is_cut_and_its_secrets_hidden(kind: Kind, faulty: FaultyHub) -> None:
    faulty.status, faulty.body = 400, f"SharedAccessKey={KEY} " + "x" * 100_000
    client = kind(faulty.connection_string, ca_file=faulty.ca_file)
    error = refused(lambda: client.get_device("d"), HubRequestRejectedError, "SharedAccessKey=***")
    assert len(error.message) < 700


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "{"])
def test_answer_that_is_no_json_is_no_hubs(kind: Kind, faulty: FaultyHub, body: str) -> None:
    faulty.status, faulty.body = 200, body
    client = kind(faulty.connection_string, ca_file=faulty.ca_file)
    host = ConnectionString.parse(faulty.connection_string).authority
    assert refused(client.list_devices, HubClientError, host).code == "hub-answer"


# Which client it is.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0", "SharedAccessKeyName"),
        ("HostName=h;SharedAccessKeyName=n", "SharedAccessKey is missing"),
        ("rubbish", "rubbish"),
    ],
)
def test_connection_string_must_be_a_services(kind: Kind, text: str, words: str) -> None:
    for make in (kind, connect):
        with pytest.raises(ContractError, match=words) as caught:
            make(text)
        assert "c2VjcmV0" not in str(caught.value)


def test_microsofts_sdk_is_taken_where_it_is_installed(hub: HubProcess) -> None:
    pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")
    assert isinstance(connect(hub.connection_string, ca_file=hub.ca_file), SdkHubClient)


@pytest.mark.parametrize("missing", ["azure.iot", "uamqp"])
def test_plain_rest_is_taken_where_the_sdk_is_not_whole(hub: HubProcess, missing: str) -> None:
    code = (
        "import sys, pathlib; sys.modules[sys.argv[1]] = None\n"
        "from publisher.hub_client import connect\n"
        "client = connect(sys.argv[2], ca_file=None)\n"
        "print(type(client).__name__)"
    )
    harmless = with_key(hub.connection_string, b"key")
    done = subprocess.run(
        [sys.executable, "-c", code, missing, harmless],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("RestHubClient\n", "")


class Identity:
    """What `azure-identity` makes, without anybody to ask."""

    def __init__(self, token: str | None = "TOKEN") -> None:
        self.scopes: list[str] = []
        self._token = token

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        self.scopes += scopes
        if self._token is None:
            raise ClientAuthenticationError(
                "DefaultAzureCredential failed to retrieve a token\nlong explanation"
            )
        return AccessToken(self._token, int(time.time()) + 3600)


def test_who_is_signed_in_asks_with_a_token(kind: Kind, faulty: FaultyHub) -> None:
    identity = Identity()
    faulty.status, faulty.body = 200, '{"deviceId": "d", "status": "enabled"}'
    client = kind(SignedIn(faulty.host, identity), ca_file=faulty.ca_file)
    assert client.host == faulty.host
    assert client.get_device("d").enabled
    assert faulty.authorizations[-1] == "Bearer TOKEN"
    assert set(identity.scopes) == {"https://iothubs.azure.net/.default"}


def test_nobody_signed_in_is_said_in_one_line(kind: Kind, faulty: FaultyHub) -> None:
    with pytest.raises(SignInError) as raised:
        kind(SignedIn(faulty.host, Identity(None)), ca_file=faulty.ca_file).get_device("d")
    assert str(raised.value).startswith(f"nobody is signed in to Azure for hub {faulty.host}: DefaultAzure")
    assert "long explanation" not in str(raised.value)
    assert raised.value.next_command == "az login"


def test_hub_without_automatic_deployments_says_so(kind: Kind, hub: HubProcess) -> None:
    """The embedded hub does not serve them yet; that is no configuration that is merely absent."""
    client = kind(hub.connection_string, ca_file=hub.ca_file)
    with pytest.raises(HubRequestRejectedError, match="serves no automatic deployments") as caught:
        client.get_configuration("north-1")
    assert caught.value.next_command == "edgewright manifest apply FILE --device DEVICE"
