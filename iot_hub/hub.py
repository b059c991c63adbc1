"""The hub: rules (`HubCore`), disk (`HubStore`) and connections brought together, one change at a time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from edge_contracts.topics import DesiredPatch
from iot_hub.core import Change, Disconnect, Effect, HubCore, PushDesired
from iot_hub.documents import identity_document, twin_document
from iot_hub.identities import IdentityKey
from iot_hub.mqtt_server import Connection, MqttDeliveryError
from iot_hub.presence import Presence
from iot_hub.store import HubStore

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def utc_now() -> datetime:
    return datetime.now(UTC)


class Connections(Protocol):
    """What the hub uses of the MQTT server; identities go by `str(IdentityKey)`."""

    def connection(self, identity: str) -> Connection | None: ...
    def disconnect(self, identity: str) -> None: ...
    def forget(self, identity: str) -> None: ...


class Hub:
    """Changes and reads for REST and MQTT alike.

    Attributes:
        core: the state; read it freely, change it through `change` only.
        connections: set once the MQTT server exists.
    """

    def __init__(self, core: HubCore, store: HubStore, writer: Executor, presence: Presence) -> None:
        self.core = core
        self.presence = presence
        self.connections: Connections | None = None
        self._store = store
        self._writer = writer
        self._lock = asyncio.Lock()

    async def change(self, plan: Callable[[], Change]) -> None:
        """Carry out one operation of the core: durable, then visible, then its effects.

        Raises:
            HubRequestError: the operation was refused.
            HubStorageError: the disk refused; nothing changed.
        """
        # Shielded: a caller that goes away must not leave the disk ahead of the memory.
        await asyncio.shield(asyncio.ensure_future(self._change(plan)))

    async def run_store(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """One blocking call of the store, in its writing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, call, *arguments)

    def identity_document(self, key: IdentityKey) -> dict[str, Any]:
        return identity_document(self.core.identity(key), self.presence.of(key))

    def twin_document(self, key: IdentityKey, members: Iterable[str] | None = None) -> dict[str, Any]:
        """The twin as the service API shows it, or only those of its members."""
        parts = self.core.twin(key), self.core.identity(key.device), self.presence.of(key)
        return twin_document(*parts) if members is None else twin_document(*parts, members)

    async def _change(self, plan: Callable[[], Change]) -> None:
        async with self._lock:
            change = plan()
            if change.is_empty:
                return
            await self.run_store(self._store.commit, change)
            self.core.apply(change)
            for effect in change.effects:
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if self.connections is None:
            return
        match effect:
            case PushDesired():
                self._push(self.connections, effect)
            case Disconnect(key, forget=True):
                self.connections.forget(str(key))
                self.presence.forget(key)
            case Disconnect(key):
                self.connections.disconnect(str(key))

    def _push(self, connections: Connections, push: PushDesired) -> None:
        """Desired patches are not queued for who is away: a device asks for its whole twin when it connects."""
        topic = str(DesiredPatch(push.version))
        connection = connections.connection(str(push.key))
        if connection is None or not connection.is_subscribed(topic):
            return
        try:
            connection.send(topic, json.dumps({**push.patch, "$version": push.version}).encode())
        except MqttDeliveryError as error:
            log.info("desired properties of %s not delivered: %s", push.key, error)
