"""What devices and modules say to the hub over MQTT, and how they are let in."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from edge_contracts.errors import ContractError
from edge_contracts.topics import (
    MethodResponse,
    ReportedPatch,
    TelemetryTopic,
    Topic,
    TwinGet,
    TwinResponse,
    is_allowed_filter,
    parse_topic,
)
from iot_hub.authentication import Authenticator
from iot_hub.errors import STATUS_OF_CODE, HubRequestError, HubStorageError
from iot_hub.hub import Hub, utc_now
from iot_hub.identities import IdentityKey
from iot_hub.json_body import parse_json
from iot_hub.methods import MethodCalls
from iot_hub.mqtt_codec import ConnackCode, Connect, Publish
from iot_hub.mqtt_server import (
    Connection,
    ConnectionInfo,
    DisconnectReason,
    Identity,
    MqttDeliveryError,
    MqttHandler,
    MqttReject,
)
from iot_hub.store import HubStore
from iot_hub.telemetry import TelemetryMessage
from iot_hub.telemetry_log import TelemetryLog

log = logging.getLogger(__name__)


class HubMqttHandler(MqttHandler):
    """The hub's side of every connection.

    A mistake of a device closes its connection: MQTT 3.1.1 has no other way to say so. Only twin requests have answers of
    their own, which carry a status.
    """

    def __init__(
        self,
        hub: Hub,
        store: HubStore,
        authenticator: Authenticator,
        telemetry: TelemetryLog,
        methods: MethodCalls,
    ) -> None:
        self._hub = hub
        self._store = store
        self._authenticator = authenticator
        self._telemetry = telemetry
        self._methods = methods
        self._handlers: dict[type[Topic], Callable[[Connection, Any, Publish], Awaitable[None]]] = {
            TelemetryTopic: self._on_telemetry,
            TwinGet: self._on_twin_get,
            ReportedPatch: self._on_reported,
            MethodResponse: self._on_method_response,
        }

    # Coming and going.

    async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
        """Username `{host}/{device}[/{module}]/?api-version=…`, password a SAS token for that resource."""
        identity = Identity.parse(connect.client_id)
        host, _, rest = (connect.username or "").partition("/")
        if not host or rest.partition("/?")[0].rstrip("/") != connect.client_id:
            log.info("%s: user name does not say host and client id", connect.client_id)
            return ConnackCode.BAD_CREDENTIALS
        try:
            token = self._authenticator.check_identity(
                (connect.password or b"").decode(errors="replace"),
                _key(identity),
                [f"{host}/{_resource(identity)}"],
            )
        except HubRequestError:
            return ConnackCode.NOT_AUTHORIZED
        return Identity(identity.device_id, identity.module_id, expires_at=token.expiry)

    async def on_connected(self, connection: Connection) -> None:
        key = _key(connection.identity)
        if not self._hub.core.is_enabled(key):
            # Disabled or deleted while its token was being checked.
            connection.close()
            return
        self._hub.presence.set_connected(key, True)
        if connection.clean_session:
            await self._hub.run_store(self._store.remove_subscription, key)

    async def on_disconnected(self, connection: Connection, reason: DisconnectReason) -> None:
        key = _key(connection.identity)
        log.info("%s disconnected: %s", key, reason)
        if self._hub.core.find(key) is not None:
            self._hub.presence.set_connected(key, False)

    # Subscriptions.

    async def load_subscriptions(self, identity: Identity) -> Iterable[str]:
        return await self._hub.run_store(self._store.subscriptions, _key(identity))

    async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
        identity = connection.identity
        if not is_allowed_filter(topic_filter, identity.device_id, identity.module_id):
            raise MqttReject(f"{identity} may not subscribe to {topic_filter!r}")
        if not connection.clean_session and topic_filter not in connection.subscriptions:
            await self._hub.run_store(self._store.add_subscription, _key(identity), topic_filter)
        return True

    async def on_unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        await self._hub.run_store(self._store.remove_subscription, _key(connection.identity), topic_filter)

    # Messages.

    async def on_publish(self, connection: Connection, publish: Publish) -> None:
        try:
            topic = parse_topic(publish.topic)
            handle = self._handlers.get(type(topic))
            if handle is None:
                raise MqttReject(f"{connection.identity} may not publish to {publish.topic!r}")
            await handle(connection, topic, publish)
        except (ContractError, HubRequestError, HubStorageError, MqttDeliveryError) as error:
            raise MqttReject(f"{connection.identity}: {error}") from error
        self._hub.presence.heard(_key(connection.identity))

    async def _on_telemetry(self, connection: Connection, topic: TelemetryTopic, publish: Publish) -> None:
        key = _key(connection.identity)
        if IdentityKey(topic.device, topic.module) != key:
            raise MqttReject(f"{key} may not publish as {topic.device}/{topic.module}")
        message = TelemetryMessage.receive(
            self._hub.core.identity(key), topic.bag, publish.payload, retain=publish.retain, now=utc_now()
        )
        await self._telemetry.append(message)

    async def _on_twin_get(self, connection: Connection, topic: TwinGet, _publish: Publish) -> None:
        twin = self._hub.core.twin(_key(connection.identity))
        connection.send(str(TwinResponse(200, topic.rid)), json.dumps(twin.device_payload()).encode())

    async def _on_reported(self, connection: Connection, topic: ReportedPatch, publish: Publish) -> None:
        key = _key(connection.identity)
        try:
            patch = parse_json(publish.payload, "the reported patch")
            await self._hub.change(lambda: self._hub.core.report(key, patch))
        except HubRequestError as error:
            log.info("reported patch of %s refused: %s", key, error)
            answer = TwinResponse(error.status, topic.rid)
        except HubStorageError as error:
            log.error("reported patch of %s not kept: %s", key, error)
            answer = TwinResponse(STATUS_OF_CODE["ServiceUnavailable"], topic.rid)
        else:
            answer = TwinResponse(204, topic.rid, self._hub.core.twin(key).reported.version)
        connection.send(str(answer), b"")

    async def _on_method_response(
        self, connection: Connection, topic: MethodResponse, publish: Publish
    ) -> None:
        payload = parse_json(publish.payload, "a method's answer")
        self._methods.answer(_key(connection.identity), topic, payload)


def _key(identity: Identity) -> IdentityKey:
    return IdentityKey(identity.device_id, identity.module_id)


def _resource(identity: Identity) -> str:
    module = "" if identity.module_id is None else f"/modules/{identity.module_id}"
    return f"devices/{identity.device_id}{module}"
