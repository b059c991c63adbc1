"""A real client of somebody else's making: paho-mqtt 1.6.1, the one inside Microsoft's device SDK."""

from __future__ import annotations

import asyncio
import queue
import ssl
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from mqtt_harness import RecordingHandler, running_server

from iot_hub.mqtt_server import DisconnectReason, MqttServer
from iot_hub.pki import PkiFiles, ensure_pki

TIMEOUT_S = 10


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> PkiFiles:
    return ensure_pki(tmp_path_factory.mktemp("pki"), [])


class PahoDevice:
    """Paho as the device SDK uses it: a thread, a persistent session, QoS 1 throughout."""

    def __init__(self, client_id: str, ca_file: Path) -> None:
        self.results: queue.Queue[int] = queue.Queue()
        self.granted: queue.Queue[tuple[int, ...]] = queue.Queue()
        self.acknowledged: queue.Queue[int] = queue.Queue()
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.client = paho.Client(client_id, clean_session=False, protocol=paho.MQTTv311)
        self.client.tls_set_context(ssl.create_default_context(cafile=str(ca_file)))
        self.client.username_pw_set("hub/d/?api-version=2019-10-01", "SharedAccessSignature sr=x")
        self.client.on_connect = lambda _c, _u, _flags, code: self.results.put(code)
        self.client.on_subscribe = lambda _c, _u, _id, codes: self.granted.put(tuple(codes))
        self.client.on_publish = lambda _c, _u, packet_id: self.acknowledged.put(packet_id)
        self.client.on_message = lambda _c, _u, message: self.messages.put((message.topic, message.payload))

    def walk(self, server: MqttServer) -> dict[str, Any]:
        """Connect, subscribe, publish, receive what the handler sends back, leave."""
        self.client.connect(server.host, server.port, keepalive=5)
        self.client.loop_start()
        try:
            found: dict[str, Any] = {"code": self.results.get(timeout=TIMEOUT_S)}
            self.client.subscribe("$iothub/twin/res/#", qos=1)
            found["granted"] = self.granted.get(timeout=TIMEOUT_S)
            packet_id = self.client.publish("devices/d/messages/events/a=%20b", b"x" * 100_000, qos=1).mid
            found["acknowledged"] = self.acknowledged.get(timeout=TIMEOUT_S) == packet_id
            self.client.publish("answer me", b"", qos=1)
            found["message"] = self.messages.get(timeout=TIMEOUT_S)
            self.client.disconnect()
            return found
        finally:
            self.client.loop_stop()


class Answering(RecordingHandler):
    async def on_publish(self, connection: Any, publish: Any) -> None:
        await super().on_publish(connection, publish)
        if publish.topic == "answer me":
            connection.send("$iothub/twin/res/200/?$rid=1", b"{}", qos=1)


def test_paho_walks_through_the_session(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = Answering()
        async with running_server(handler, pki) as server, asyncio.timeout(30):
            found = await asyncio.to_thread(PahoDevice("d", pki.ca_cert).walk, server)
            assert found == {
                "code": 0,
                "granted": (1,),
                "acknowledged": True,
                "message": ("$iothub/twin/res/200/?$rid=1", b"{}"),
            }
            await handler.until_event("disconnected", "d", DisconnectReason.CLIENT)
            assert len(handler.messages[0].payload) == 100_000

    asyncio.run(test())
