"""Telemetry as the hub keeps and shows it: a log of messages, each with an offset that is never used twice."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_contracts.messages import Message, decode_property_bag
from edge_contracts.twin import format_time
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityRecord

# Azure, "IoT Hub quotas": a device-to-cloud message has at most 256 KB.
BODY_LIMIT_BYTES = 262144

# Field of Message → name under which Azure's message routing shows it.
_SYSTEM_NAMES: tuple[tuple[str, str], ...] = (
    ("message_id", "message-id"),
    ("correlation_id", "correlation-id"),
    ("user_id", "user-id"),
    ("content_type", "content-type"),
    ("content_encoding", "content-encoding"),
    ("output_name", "output-name"),
    ("interface_id", "dt-dataschema"),
    ("expiry", "expiry"),
    ("connection_device_id", "source-device-id"),
    ("connection_module_id", "source-module-id"),
)


@dataclass(frozen=True, slots=True)
class TelemetryMessage:
    """One message before it has an offset; `enqueued` in seconds since the epoch."""

    device_id: str
    module_id: str | None
    enqueued: float
    system_properties: Mapping[str, str]
    properties: Mapping[str, str]
    body: bytes

    @property
    def size_bytes(self) -> int:
        """What it counts for in the log's size limit: body, properties, and 100 for the rest of its row."""
        texts = (*self.system_properties.items(), *self.properties.items())
        return 100 + len(self.body) + sum(len(key) + len(value) for key, value in texts)

    @classmethod
    def receive(
        cls, sender: IdentityRecord, bag: str, body: bytes, *, retain: bool, now: datetime
    ) -> TelemetryMessage:
        """The message that `sender` published at `now`.

        Raises:
            HubRequestError: the body is over 256 KiB.
            ContractError: the property bag cannot be read.
        """
        if len(body) > BODY_LIMIT_BYTES:
            raise HubRequestError(
                "RequestEntityTooLarge", f"a message may have {BODY_LIMIT_BYTES} bytes, not {len(body)}"
            )
        message = decode_property_bag(bag, body)
        # MQTT's RETAIN is not kept: the message carries it as an application property (Azure, "MQTT support").
        retained = {"x-opt-retain": "true"} if retain else {}
        return cls(
            sender.key.device_id,
            sender.key.module_id,
            now.timestamp(),
            _system_properties(message, sender, now),
            {**message.properties, **retained},
            body,
        )


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of the log."""

    offset: int
    message: TelemetryMessage

    def as_document(self) -> dict[str, Any]:
        """As `GET /edgewright/telemetry` shows it."""
        message = self.message
        return {
            "offset": self.offset,
            "deviceId": message.device_id,
            "moduleId": message.module_id,
            "enqueuedTime": message.system_properties["iothub-enqueuedtime"],
            "systemProperties": dict(message.system_properties),
            "properties": dict(message.properties),
            "body": base64.b64encode(message.body).decode(),
        }


@dataclass(frozen=True, slots=True)
class TelemetryPage:
    """Messages of one read; `next` is where to go on, `oldest` the first offset still kept."""

    messages: tuple[StoredMessage, ...]
    next: int
    oldest: int

    def as_document(self) -> dict[str, Any]:
        return {
            "messages": [message.as_document() for message in self.messages],
            "next": self.next,
            "oldest": self.oldest,
        }


def _system_properties(message: Message, sender: IdentityRecord, now: datetime) -> dict[str, str]:
    given = ((name, getattr(message, field)) for field, name in _SYSTEM_NAMES)
    module = {} if sender.key.module_id is None else {"iothub-connection-module-id": sender.key.module_id}
    return {
        **{name: value for name, value in given if value is not None},
        "iothub-connection-device-id": sender.key.device_id,
        **module,
        "iothub-connection-auth-generation-id": sender.generation_id,
        "iothub-enqueuedtime": format_time(now),
        "iothub-message-source": "Telemetry",
    }
