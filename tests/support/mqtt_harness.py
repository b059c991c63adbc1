"""A running MQTT server for tests: a handler that records, and a server around any handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from iot_hub.mqtt_codec import ConnackCode, Connect, Publish
from iot_hub.mqtt_server import (
    Connection,
    ConnectionInfo,
    DisconnectReason,
    Identity,
    MqttHandler,
    MqttReject,
    MqttServer,
    server_ssl_context,
)
from iot_hub.pki import PkiFiles

TIMEOUT_S = 10.0


class RecordingHandler(MqttHandler):
    """Accepts everyone but the password `wrong`; `events` tells what happened, in order.

    Topics with a meaning: `reject` closes, `crash` raises, `hold` waits for `gate`.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.messages: list[Publish] = []
        self.infos: list[ConnectionInfo] = []
        self.gate = asyncio.Event()
        self.expires_at: float | None = None
        self.kept: dict[str, set[str]] = {}
        self.allowed: Callable[[str], bool] = lambda topic_filter: not topic_filter.startswith("secret")
        self.changed = asyncio.Event()

    async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
        self.infos.append(info)
        if connect.password == b"wrong":
            return ConnackCode.BAD_CREDENTIALS
        identity = Identity.parse(connect.client_id)
        return Identity(identity.device_id, identity.module_id, self.expires_at)

    async def on_publish(self, connection: Connection, publish: Publish) -> None:
        if publish.topic == "reject":
            raise MqttReject("topic 'reject'")
        if publish.topic == "crash":
            raise RuntimeError("the handler's own mistake")
        if publish.topic == "hold":
            await self.gate.wait()
        self.messages.append(publish)
        self._record("publish", str(connection.identity), publish.topic)

    async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
        if topic_filter == "reject":
            raise MqttReject("filter 'reject'")
        self._record("subscribe", str(connection.identity), topic_filter)
        return self.allowed(topic_filter)

    async def on_unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        self._record("unsubscribe", str(connection.identity), topic_filter)

    async def load_subscriptions(self, identity: Identity) -> set[str]:
        return self.kept.get(str(identity), set())

    async def on_connected(self, connection: Connection) -> None:
        self._record("connected", str(connection.identity))

    async def on_disconnected(self, connection: Connection, reason: DisconnectReason) -> None:
        self._record("disconnected", str(connection.identity), reason)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns as soon as something was recorded that makes the condition true."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_event(self, *event: str) -> None:
        await self.until(lambda: event in self.events)

    def _record(self, *event: str) -> None:
        self.events.append(event)
        self.changed.set()


@asynccontextmanager
async def running_server(
    handler: MqttHandler, pki: PkiFiles, *, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[MqttServer]:
    """A started server on a free port of `host`; stopped at the end."""
    context = server_ssl_context(pki.server_cert, pki.server_key)
    server = MqttServer(handler, host=host, port=0, ssl_context=context, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
