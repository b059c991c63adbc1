"""What the device's local MQTT server does with packets: modules sign in, send messages and receive inputs.

Rules (topics and sign-in as IoT Hub's, see `edge_contracts.topics`; behaviour as Azure IoT Edge's edge hub):

- a module signs in with a SAS token for `{hub}/devices/{device}/modules/{module}` signed by its own key, which the
  agent holds; so signing in needs no network;
- a message is acknowledged when it is stored for every endpoint that its routes name;
- a module reaches only its own topics; any other topic closes the connection;
- twins and methods of modules are not served here; a twin request is answered 501.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from edge_contracts.errors import ContractError
from edge_contracts.messages import Message, decode_property_bag
from edge_contracts.sas import verify_sas
from edge_contracts.topics import (
    ReportedPatch,
    TelemetryTopic,
    TwinGet,
    TwinResponse,
    is_allowed_filter,
    parse_topic,
)
from iot_hub.mqtt_codec import ConnackCode, Connect, Publish
from iot_hub.mqtt_server import (
    Connection,
    ConnectionInfo,
    DisconnectReason,
    Identity,
    MqttHandler,
    MqttReject,
)

log = logging.getLogger(__name__)

NOT_IMPLEMENTED = 501


class ModuleSessions(MqttHandler):
    """The handler of the edge hub's MQTT server.

    `accept` returns when a message is durable; `changed` is told which module can now receive, or no longer.
    """

    def __init__(
        self,
        *,
        hub_host_name: str,
        device_id: str,
        key_of: Callable[[str], str | None],
        accept: Callable[[Message], Awaitable[object]],
        changed: Callable[[str], None],
    ) -> None:
        self._hub, self._device_id = hub_host_name, device_id
        self._key_of, self._accept, self._changed = key_of, accept, changed

    async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
        identity = Identity.parse(connect.client_id)
        module = identity.module_id
        if identity.device_id != self._device_id or module is None:
            return ConnackCode.IDENTIFIER_REJECTED
        key = self._key_of(module)
        if key is None or connect.password is None:
            return ConnackCode.NOT_AUTHORIZED
        try:
            token = verify_sas(
                connect.password.decode(),
                [key],
                audience=f"{self._hub}/devices/{self._device_id}/modules/{module}",
                now=time.time(),
            )
        except (ContractError, UnicodeDecodeError) as error:
            log.warning("module %s was refused: %s", module, error)
            return ConnackCode.NOT_AUTHORIZED
        return replace(identity, expires_at=float(token.expiry))

    async def on_publish(self, connection: Connection, publish: Publish) -> None:
        identity = connection.identity
        try:
            topic = parse_topic(publish.topic)
            if isinstance(topic, TwinGet | ReportedPatch):
                connection.send(str(TwinResponse(NOT_IMPLEMENTED, topic.rid)), b"")
                return
            if not isinstance(topic, TelemetryTopic) or topic.device != self._device_id:
                raise MqttReject(f"topic {publish.topic} is not served to modules")
            if topic.module != identity.module_id:
                raise MqttReject(f"topic {publish.topic} is another module's")
            message = decode_property_bag(topic.bag, publish.payload)
        except ContractError as error:
            raise MqttReject(str(error)) from error
        await self._accept(
            replace(message, connection_device_id=self._device_id, connection_module_id=identity.module_id)
        )

    async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
        identity = connection.identity
        if not is_allowed_filter(topic_filter, self._device_id, identity.module_id):
            raise MqttReject(f"filter {topic_filter} is not allowed to {identity}")
        self._changed(str(identity.module_id))
        return True

    async def on_connected(self, connection: Connection) -> None:
        log.info("module %s connected", connection.identity.module_id)
        self._changed(str(connection.identity.module_id))

    async def on_disconnected(self, connection: Connection, reason: DisconnectReason) -> None:
        log.info("module %s disconnected: %s", connection.identity.module_id, reason)
