"""The hub as a process: how it starts, ends and dies, what it lets in over MQTT, and its registry."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_harness import HubProcess, wait_until
from mqtt_client import MqttTestClient
from registry_images import put_image

from edge_containers.errors import ContainerError
from edge_containers.image_model import Platform
from edge_containers.registry_client import RegistryClient
from edge_containers.registry_transport import BasicCredentials
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageRef
from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString, make_sas
from iot_hub.mqtt_codec import ConnackCode, Publish

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("process") / "hub") as process:
        yield process


def put(hub: HubProcess, path: str, **body: object) -> None:
    keys = {"primaryKey": KEY, "secondaryKey": KEY}
    status, answer = hub.request("PUT", path, {"authentication": {"symmetricKey": keys}, **body})
    assert status in (200, 201), answer


def token(resource: str, ttl_s: int = 600, key: str = KEY, policy: str | None = None) -> str:
    return make_sas(resource, key, expiry=int(time.time()) + ttl_s, policy=policy)


def owner_token(hub: HubProcess) -> str:
    owner = ConnectionString.parse(hub.connection_string)
    return token(hub.host, key=owner.shared_access_key.reveal(), policy="iothubowner")


async def connect(
    hub: HubProcess, client: MqttTestClient, client_id: str = "d", **options: object
) -> ConnackCode:
    device, _, module = client_id.partition("/")
    resource = f"{hub.host}/devices/{device}" + (f"/modules/{module}" if module else "")
    defaults = {
        "username": f"{hub.host}/{client_id}/?api-version=2021-04-12",
        "password": token(resource),
    }
    return await client.connect(client_id, **{**defaults, **options})  # type: ignore[arg-type]


def client_of(hub: HubProcess) -> MqttTestClient:
    return MqttTestClient(hub.host, 8883, hub.ca_file)


# Starting and ending.


def test_folder_holds_what_clients_need_for_their_owner_alone(hub: HubProcess) -> None:
    for name in (
        "ca.pem",
        "ca-bundle.pem",
        "connection-string",
        "env",
        "hub.db",
        "pki/ca-key.pem",
        "pki/server-key.pem",
    ):
        assert (hub.data_dir / name).stat().st_mode & 0o777 == 0o600, name
    assert hub.data_dir.stat().st_mode & 0o777 == 0o700
    parsed = ConnectionString.parse(hub.connection_string)
    assert (parsed.host_name, parsed.port, parsed.shared_access_key_name) == (
        hub.host,
        hub.https_port,
        "iothubowner",
    )
    bundle = (hub.data_dir / "ca-bundle.pem").read_text()
    assert hub.ca_file.read_text() in bundle
    assert bundle.count("BEGIN CERTIFICATE") > 50
    shell = subprocess.run(
        ["sh", "-c", '. "$0" && echo "$SSL_CERT_FILE $REQUESTS_CA_BUNDLE"', str(hub.data_dir / "env")],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    assert shell.stdout.split() == [str(hub.data_dir / "ca-bundle.pem")] * 2


@pytest.mark.parametrize("flag", ["--mqtt-port", "--https-port", "--registry-port"])
def test_port_in_use_is_one_message_that_names_port_and_flag(
    hub: HubProcess, tmp_path: Path, flag: str
) -> None:
    other = HubProcess(tmp_path / "other", host=hub.host)
    ports = {"--mqtt-port": "0", "--https-port": "0", "--registry-port": "0"}
    taken = {"--mqtt-port": 8883, "--https-port": hub.https_port, "--registry-port": hub.ready["registry"]}[
        flag
    ]
    arguments = [part for name in ports for part in (name, str(taken) if name == flag else "0")]
    done = subprocess.run(
        [*other.command(), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot listen for")
    assert f"{hub.host}:{taken}: Address already in use; choose another port with {flag}" in line
    assert not (tmp_path / "other").exists()


def test_folder_in_use_is_refused(hub: HubProcess) -> None:
    done = subprocess.run(
        HubProcess(hub.data_dir).command(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: data folder {hub.data_dir} is in use by another hub; choose another with --data\n"
    )


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        HubProcess(tmp_path / "file" / "hub").command(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: cannot use the data folder {tmp_path / 'file' / 'hub'}: Not a directory\n"


def test_stop_answers_what_is_in_flight_and_exits_zero(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub")
    hub.start()
    try:
        answers: list[object] = []
        reader = threading.Thread(
            target=lambda: answers.append(hub.request("GET", "/edgewright/telemetry?wait=60"))
        )
        reader.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert hub.stop() == 0
        assert time.monotonic() - began < 10
        reader.join(10)
        assert answers == [(200, {"messages": [], "next": 1, "oldest": 1})]
        # Stopped in order: the write-ahead log is folded into the database.
        assert not (tmp_path / "hub" / "hub.db-wal").exists()
        assert "Traceback" not in hub.log
    finally:
        hub.kill()


def test_log_holds_no_secret(hub: HubProcess) -> None:
    put(hub, "/devices/logged")
    wrong = token(hub.host, key=base64.b64encode(b"w" * 32).decode(), policy="iothubowner")
    assert hub.request("GET", "/devices", token=wrong)[0] == 401
    wait_until(lambda: "signed by none of its keys" in hub.log)
    owner = ConnectionString.parse(hub.connection_string).shared_access_key.reveal()
    for secret in (KEY, owner, "sig=", "sr="):
        assert secret not in hub.log


def test_acknowledged_telemetry_survives_a_kill(tmp_path: Path) -> None:
    with HubProcess(tmp_path / "hub") as hub:
        for device in ("a", "b", "c"):
            put(hub, f"/devices/{device}")
        acknowledged: dict[str, int] = {}

        async def send(device: str) -> None:
            async with client_of(hub) as client:
                assert await connect(hub, client, device) is ConnackCode.ACCEPTED
                for number in range(10_000):
                    await client.publish(f"devices/{device}/messages/events/", str(number).encode())
                    acknowledged[device] = number + 1

        async def scenario() -> None:
            senders = [asyncio.ensure_future(send(device)) for device in ("a", "b", "c")]
            while sum(acknowledged.values()) < 60:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(hub.kill)
            results = await asyncio.gather(*senders, return_exceptions=True)
            assert all(isinstance(result, ConnectionError | OSError) for result in results), results

        asyncio.run(scenario())
        hub.start()
        for device, count in acknowledged.items():
            kept = [int(base64.b64decode(message["body"])) for message in hub.telemetry(device)]
            assert kept[:count] == list(range(count))
            assert len(kept) <= count + 1, "at most the one message in flight is there unacknowledged"
        put(hub, "/devices/after")


# MQTT, where the SDKs only ever do the right thing.


def try_to_connect(hub: HubProcess, client_id: str = "d", **options: object) -> ConnackCode:
    async def scenario() -> ConnackCode:
        async with client_of(hub) as client:
            return await connect(hub, client, client_id, **options)

    return asyncio.run(scenario())


def test_only_a_token_for_this_identity_opens(hub: HubProcess) -> None:
    put(hub, "/devices/d")
    put(hub, "/devices/d/modules/m")
    put(hub, "/devices/e")
    host = hub.host
    assert try_to_connect(hub, "d") is ConnackCode.ACCEPTED
    assert try_to_connect(hub, "d/m") is ConnackCode.ACCEPTED
    for options in (
        {"password": token(f"{host}/devices/e")},
        {"password": token(f"{host}/devices/d/modules/m")},
        {"password": token(f"{host}/devices/d", ttl_s=-1)},
        {"password": None},
        {"password": "not a token"},
        {"password": b"\xff\xfe"},
        {"username": f"{host}/e/?api-version=2021-04-12"},
        {"username": None, "password": None},
    ):
        assert try_to_connect(hub, "d", **options) in (
            ConnackCode.NOT_AUTHORIZED,
            ConnackCode.BAD_CREDENTIALS,
        ), options


@pytest.mark.parametrize(
    "topic",
    [
        "devices/other/messages/events/",
        "devices/talker/modules/m/messages/events/",
        "devices/talker/messages/devicebound/",
        "$iothub/twin/PATCH/properties/desired/?$version=2",
        "devices/talker/messages/events/%FF",
        "anything",
    ],
)
def test_publish_to_a_topic_not_allowed_closes_the_connection(hub: HubProcess, topic: str) -> None:
    put(hub, "/devices/talker")

    async def scenario() -> None:
        async with client_of(hub) as client:
            await connect(hub, client, "talker")
            client.write(Publish(topic, b"x", 1, 7))
            await client.expect_closed()

    asyncio.run(scenario())
    assert hub.telemetry("talker") == []


@pytest.mark.parametrize("topic_filter", ["#", "devices/other/messages/devicebound/#", "$SYS/#", "$iothub/#"])
def test_subscribing_to_what_is_not_ones_own_closes_the_connection(
    hub: HubProcess, topic_filter: str
) -> None:
    put(hub, "/devices/listener")

    async def scenario() -> None:
        async with client_of(hub) as client:
            await connect(hub, client, "listener")
            with pytest.raises(ConnectionError):
                await client.subscribe(topic_filter)

    asyncio.run(scenario())


def test_retained_and_will_messages_become_telemetry(hub: HubProcess) -> None:
    from iot_hub.mqtt_codec import Will

    put(hub, "/devices/will")
    topic = "devices/will/messages/events/"

    async def scenario() -> None:
        async with client_of(hub) as client:
            await connect(hub, client, "will", will=Will(topic + "kind=will", b"gone", 0, False))
            client.write(Publish(topic + "a=b", b"kept", 1, 1, retain=True))
            await client.ping()
            client.drop()

    asyncio.run(scenario())
    wait_until(lambda: len(hub.telemetry("will")) == 2)
    kept, will = hub.telemetry("will")
    assert kept["properties"] == {"a": "b", "x-opt-retain": "true"}
    assert (base64.b64decode(will["body"]), will["properties"]) == (b"gone", {"kind": "will"})


def test_bad_reported_patch_is_answered_with_a_status(hub: HubProcess) -> None:
    put(hub, "/devices/reporter")

    async def scenario() -> list[str]:
        answers = []
        async with client_of(hub) as client:
            await connect(hub, client, "reporter")
            await client.subscribe("$iothub/twin/res/#")
            for number, patch in enumerate((b"{", b"[1]", b'{"a.b": 1}', b'{"a": 1}', b'{"a": null}')):
                await client.publish(f"$iothub/twin/PATCH/properties/reported/?$rid={number}", patch)
                answers.append((await client.expect()).topic)
        return answers

    assert asyncio.run(scenario()) == [
        "$iothub/twin/res/400/?$rid=0",
        "$iothub/twin/res/400/?$rid=1",
        "$iothub/twin/res/400/?$rid=2",
        "$iothub/twin/res/204/?$rid=3&$version=2",
        "$iothub/twin/res/204/?$rid=4&$version=3",
    ]


def test_subscriptions_of_a_clean_session_are_gone_afterwards(hub: HubProcess) -> None:
    put(hub, "/devices/clean")

    async def session(clean: bool, subscribe: bool) -> bool:
        async with client_of(hub) as client:
            await connect(hub, client, "clean", clean_session=clean)
            if subscribe:
                await client.subscribe("$iothub/twin/res/#")
            await client.disconnect()
            return client.session_present

    assert [
        asyncio.run(session(*each)) for each in ((False, True), (False, False), (True, False), (False, False))
    ] == [
        False,
        True,
        False,
        False,
    ]


# The registry.


def minted(hub: HubProcess, **body: object) -> BasicCredentials:
    status, answer = hub.request("POST", "/edgewright/registry/credentials", body)
    assert (status, answer["address"]) == (201, hub.registry_address), answer
    return BasicCredentials(answer["username"], Secret(answer["password"]))


def test_registry_takes_policies_minted_credentials_and_devices(hub: HubProcess, tmp_path: Path) -> None:
    put(hub, "/devices/puller")
    store = ContentStore(tmp_path / "store")
    image = put_image(store, {"model": b"weights"})

    def client(credentials: BasicCredentials) -> RegistryClient:
        return RegistryClient(hub.registry_address, credentials=credentials)

    def push(credentials: BasicCredentials, repository: str) -> None:
        client(credentials).push_image(store, image, repository, "1")

    def pull(credentials: BasicCredentials, repository: str) -> None:
        ref = ImageRef.parse(f"{hub.registry_address}/{repository}:1").with_digest(image.digest)
        fresh = ContentStore(tmp_path / f"pull-{time.monotonic_ns()}")
        client(credentials).pull_image(ref, Platform("linux", "amd64"), fresh)

    owner = BasicCredentials("iothubowner", Secret(owner_token(hub)))
    push(owner, "digits")
    push(owner, "other")
    puller = minted(hub, repository="digits")
    pull(puller, "digits")
    pull(BasicCredentials("puller", Secret(token(f"{hub.host}/devices/puller"))), "other")
    pusher = minted(hub, repository="team-*", actions=["push", "pull"])
    push(pusher, "team-a")

    short = minted(hub, repository="digits", ttlSeconds=1)
    time.sleep(1.1)
    status, _ = hub.request("DELETE", f"/edgewright/registry/credentials/{puller.username}")
    assert status == 204
    device_key = Secret(token(f"{hub.host}/devices/puller"))
    for call, credentials, repository in (
        (pull, pusher, "other"),
        (push, minted(hub, repository="digits"), "digits"),
        (push, BasicCredentials("puller", device_key), "digits"),
        (pull, BasicCredentials("iothubowner", device_key), "digits"),
        (pull, BasicCredentials("service", owner.password), "digits"),
        (pull, BasicCredentials("nobody", Secret("password")), "digits"),
        (pull, short, "digits"),
        (pull, puller, "digits"),
    ):
        with pytest.raises(ContainerError):
            call(credentials, repository)
    listed = [entry["username"] for entry in hub.request("GET", "/edgewright/registry/credentials")[1]]
    assert pusher.username in listed
    assert puller.username not in listed
    assert short.username not in listed


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"repository": "Upper"},
        {"repository": "a", "actions": []},
        {"repository": "a", "actions": ["delete"]},
        {"repository": "a", "ttlSeconds": 0},
        {"repository": "a", "extra": 1},
        {"repositories": []},
        {"repositories": "a"},
        {"repositories": ["a", "Upper"]},
        {"repositories": ["a"], "repository": "a"},
        {"repositories": ["a"] * 65},
    ],
    ids=json.dumps,
)
def test_bad_credential_request_names_the_member(hub: HubProcess, body: dict[str, object]) -> None:
    status, answer = hub.request("POST", "/edgewright/registry/credentials", body)
    assert status == 400
    assert "ErrorCode:ArgumentInvalid;" in answer["Message"]
