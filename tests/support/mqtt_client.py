"""A small asyncio MQTT client on the product's codec, for tests of anything that speaks MQTT over TLS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from iot_hub.mqtt_codec import (
    Connack,
    ConnackCode,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
    encode,
)

TIMEOUT_S = 10.0
P = TypeVar("P")


class MqttTestClient:
    """One TLS connection. Messages are acknowledged and queued as they come; other packets answer requests.

    ::

        async with MqttTestClient("127.0.0.1", server.port, ca_file) as client:
            assert await client.connect("device", username="…", password=sas) is ConnackCode.ACCEPTED
            await client.subscribe("$iothub/twin/res/#")
            await client.publish("$iothub/twin/GET/?$rid=1", b" ")
            message = await client.expect("$iothub/twin/res/200/")
    """

    def __init__(
        self, host: str, port: int, ca_file: Path, *, acknowledge: bool = True, tls12: bool = False
    ) -> None:
        self.host = host
        self.port = port
        self.acknowledge = acknowledge
        self.messages: asyncio.Queue[Publish] = asyncio.Queue()
        self.session_present = False
        self._replies: asyncio.Queue[Packet | None] = asyncio.Queue()
        self._context = ssl.create_default_context(cafile=str(ca_file))
        if tls12:
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._packet_id = 0
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> MqttTestClient:
        async with asyncio.timeout(TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_connection(
                self.host, self.port, ssl=self._context, server_hostname=self.host
            )
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def connect(
        self,
        client_id: str,
        *,
        username: str | None = None,
        password: str | bytes | None = None,
        clean_session: bool = False,
        keep_alive_s: int = 60,
        will: Will | None = None,
    ) -> ConnackCode:
        secret = password.encode() if isinstance(password, str) else password
        self.write(Connect(client_id, keep_alive_s, clean_session, username, secret, will))
        connack = await self._reply(Connack)
        self.session_present = connack.session_present
        return connack.code

    async def subscribe(self, *filters: str, qos: int = 1) -> tuple[int, ...]:
        packet_id = self._next_id()
        self.write(Subscribe(packet_id, tuple((topic_filter, qos) for topic_filter in filters)))
        suback = await self._reply(Suback)
        assert suback.packet_id == packet_id
        return suback.codes

    async def unsubscribe(self, *filters: str) -> None:
        self.write(Unsubscribe(self._next_id(), filters))
        await self._reply(Unsuback)

    async def publish(self, topic: str, payload: bytes = b"", qos: int = 1) -> None:
        """Returns when the server has acknowledged it (QoS 1) or it is written (QoS 0)."""
        packet_id = self._next_id() if qos else None
        self.write(Publish(topic, payload, qos, packet_id))
        if packet_id is not None:
            assert (await self._reply(Puback)).packet_id == packet_id

    async def ping(self) -> None:
        self.write(Pingreq())
        await self._reply(Pingresp)

    async def expect(self, topic_start: str = "", timeout_s: float = TIMEOUT_S) -> Publish:
        """The next message; its topic must begin with `topic_start`."""
        async with asyncio.timeout(timeout_s):
            message = await self.messages.get()
        assert message.topic.startswith(topic_start), f"expected {topic_start}…, found {message.topic}"
        return message

    async def expect_closed(self, timeout_s: float = TIMEOUT_S) -> None:
        """Returns when the server has closed the connection."""
        async with asyncio.timeout(timeout_s):
            await self._closed.wait()

    async def disconnect(self) -> None:
        """Leave gracefully: no will message."""
        self.write(Disconnect())
        await self.expect_closed()

    def drop(self) -> None:
        """Cut the connection without a word."""
        self._writer.transport.abort()

    def write(self, packet: Packet | bytes) -> None:
        self._writer.write(packet if isinstance(packet, bytes) else encode(packet))

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % 65535 + 1
        return self._packet_id

    async def _reply(self, kind: type[P]) -> P:
        async with asyncio.timeout(TIMEOUT_S):
            packet = await self._replies.get()
        if packet is None:
            raise ConnectionError(f"the server closed the connection; expected {kind.__name__}")
        assert isinstance(packet, kind), f"expected {kind.__name__}, found {packet}"
        return packet

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := await self._reader.read(65536):
                for packet in decoder.feed(data):
                    self._sort(packet)
        except OSError:
            pass  # how the connection ended does not matter here
        finally:
            self._closed.set()
            self._replies.put_nowait(None)

    def _sort(self, packet: Packet) -> None:
        if not isinstance(packet, Publish):
            self._replies.put_nowait(packet)
            return
        self.messages.put_nowait(packet)
        if packet.packet_id is not None and self.acknowledge:
            self.write(Puback(packet.packet_id))
