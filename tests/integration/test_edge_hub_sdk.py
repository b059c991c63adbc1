"""The edge hub with a stock module: Microsoft's SDK signs in through the workload API, unmodified."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from azure.iot.device import IoTHubModuleClient
from azure.iot.device import Message as SdkMessage

from edge_agent.edge_hub import EdgeHub, EdgeHubConfig
from edge_contracts.errors import HubError
from edge_contracts.messages import Message
from edge_contracts.routes import Route

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KEYS = {"scorer": base64.b64encode(b"k" * 32).decode()}
# Port 8883 is the SDK's only one, so each hub has an address of its own.
ADDRESSES: Iterator[str] = (f"127.88.{os.getpid() % 250 + 1}.{n}" for n in itertools.count(1))


class Upstream:
    """A link that can be cut; what arrived is kept."""

    def __init__(self) -> None:
        self.up = True
        self.arrived: list[Message] = []
        self.news = asyncio.Event()

    async def send(self, module_id: str | None, message: Message) -> None:
        assert module_id == message.connection_module_id
        if not self.up:
            raise OSError("link is down")
        self.arrived.append(message)
        self.news.set()


ROUTES = (
    Route.parse("up", "FROM /messages/modules/scorer/outputs/* INTO $upstream"),
    Route.parse(
        "in",
        "FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId)"
        ' INTO BrokeredEndpoint("/modules/scorer/inputs/input1")',
    ),
)


def run(tmp_path: Path, body: Callable[[EdgeHub, Upstream, IoTHubModuleClient], Awaitable[None]]) -> None:
    """Start an edge hub with one module known to it and a stock client for that module."""

    async def main() -> None:
        upstream = Upstream()
        config = EdgeHubConfig(next(ADDRESSES), "hub.example", "d", tmp_path)
        hub = EdgeHub(config, KEYS.get, upstream)
        await hub.start()
        hub.set_routes(ROUTES, 7200)
        folder = await hub.ensure_module("scorer")
        environment = hub.module_environment("scorer")
        environment["IOTEDGE_WORKLOADURI"] = f"unix://{folder}/workload.sock"
        client = await asyncio.to_thread(module_client, environment)
        try:
            await body(hub, upstream, client)
        finally:
            await asyncio.to_thread(client.shutdown)
            await hub.stop()

    asyncio.run(main())


def module_client(environment: dict[str, str]) -> IoTHubModuleClient:
    saved = dict(os.environ)
    os.environ.update(environment)
    try:
        return IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=1)
    finally:
        os.environ.clear()
        os.environ.update(saved)


async def listen(client: IoTHubModuleClient, handler: Callable[[SdkMessage], None]) -> None:
    """Connect and subscribe; setting a handler blocks until the hub, in this very loop, has answered."""
    await asyncio.to_thread(client.connect)
    await asyncio.to_thread(setattr, client, "on_message_received", handler)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_module_receives_inputs_and_its_outputs_go_upstream(tmp_path: Path) -> None:
    async def body(hub: EdgeHub, upstream: Upstream, client: IoTHubModuleClient) -> None:
        received: list[SdkMessage] = []
        await listen(client, received.append)
        await until(lambda: hub.connected_modules() == ("scorer",))
        assert await hub.publish_local(Message(b"in", properties={"kind": "digit"})) == 1
        await until(lambda: bool(received))
        assert (received[0].input_name, bytes(received[0].data)) == ("input1", b"in")
        assert received[0].custom_properties["kind"] == "digit"
        answer = SdkMessage(b"out")
        answer.custom_properties["digit"] = "7"
        await asyncio.to_thread(client.send_message_to_output, answer, "output1")
        await asyncio.wait_for(upstream.news.wait(), 10)
        arrived = upstream.arrived[0]
        assert (arrived.body, arrived.output_name, arrived.properties) == (b"out", "output1", {"digit": "7"})
        assert (arrived.connection_device_id, arrived.connection_module_id) == ("d", "scorer")
        assert arrived.message_id

    run(tmp_path, body)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_messages_wait_while_the_link_is_down_and_while_the_module_is_away(tmp_path: Path) -> None:
    async def body(hub: EdgeHub, upstream: Upstream, client: IoTHubModuleClient) -> None:
        upstream.up = False
        await hub.publish_local(Message(b"early"))
        received = threading.Event()
        await listen(client, lambda _message: received.set())
        assert await asyncio.to_thread(received.wait, 10)
        await asyncio.to_thread(client.send_message_to_output, SdkMessage(b"late"), "output1")
        stats = await hub.stats()
        assert stats.waiting == {"$upstream": 1}
        upstream.up = True
        hub.upstream_changed()
        await asyncio.wait_for(upstream.news.wait(), 10)
        assert upstream.arrived[0].body == b"late"

    run(tmp_path, body)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_wrong_key_does_not_open_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(hub: EdgeHub, upstream: Upstream, client: IoTHubModuleClient) -> None:
        with pytest.raises(Exception, match=r"(?i)credential|unauthor|connect"):
            await asyncio.to_thread(client.connect)
        assert hub.connected_modules() == ()

    from edge_agent.edge_hub import workload

    other = base64.b64encode(b"o" * 32).decode()
    monkeypatch.setattr(workload, "sign", lambda _key, data: signed(other, data))
    run(tmp_path, body)


def signed(key: str, data: bytes) -> str:
    from edge_contracts.sas import sign

    return sign(key, data)


def test_an_edge_hub_whose_address_was_taken_starts_once_it_is_free(tmp_path: Path) -> None:
    async def main() -> None:
        host = next(ADDRESSES)
        config = EdgeHubConfig(host, "hub.example", "d", tmp_path)
        hub = EdgeHub(config, KEYS.get, Upstream())
        with socket.create_server((host, 8883)), pytest.raises(HubError, match=f"{host}.*8883"):
            await hub.start()
        await hub.start()
        assert (await hub.stats()).waiting == {}
        await hub.stop()

    asyncio.run(main())
