"""Messages with their application and system properties, and the property bag of MQTT topics.

Rules (IoT Hub, "Send device-to-cloud messages over MQTT"; `azure-iot-device` follows them):
- A bag is `key=value` joined by `&`, both percent-encoded as RFC 3986 says: a space is `%20`, `+` is itself.
- System properties have keys that begin with `$.`; `$` may be written `%24`.
- Written bags hold the system properties in table order, then the application properties sorted by key.
- A system key that is not in the table stays among the properties under its wire name, so that nothing is lost.

>>> encode_property_bag(Message(b"{}", message_id="1", properties={"kind": "a b"}))
'%24.mid=1&kind=a%20b'
>>> decode_property_bag("%24.mid=1&kind=a%20b", b"{}").properties
{'kind': 'a b'}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from edge_contracts.errors import ContractError, shown


@dataclass(frozen=True, slots=True)
class Message:
    """A telemetry, routed or cloud-to-device message; `body` is never interpreted here."""

    body: bytes
    message_id: str | None = None
    correlation_id: str | None = None
    user_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    output_name: str | None = None
    input_name: str | None = None
    connection_device_id: str | None = None
    connection_module_id: str | None = None
    interface_id: str | None = None
    to: str | None = None
    expiry: str | None = None
    ack: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


# Wire key, field of Message. `input_name` is a part of the topic, never of the bag.
SYSTEM_PROPERTIES: tuple[tuple[str, str], ...] = (
    ("$.on", "output_name"),
    ("$.mid", "message_id"),
    ("$.cid", "correlation_id"),
    ("$.uid", "user_id"),
    ("$.ct", "content_type"),
    ("$.ce", "content_encoding"),
    ("$.ifid", "interface_id"),
    ("$.to", "to"),
    ("$.exp", "expiry"),
    ("iothub-ack", "ack"),
    ("$.cdid", "connection_device_id"),
    ("$.cmid", "connection_module_id"),
)
_FIELD_OF_KEY = dict(SYSTEM_PROPERTIES)


def encode_property_bag(message: Message) -> str:
    """The properties of `message` as the last part of a topic; empty when there are none.

    Raises:
        ContractError: a property name is empty, or a property is not Unicode text.
    """
    system = ((key, getattr(message, name)) for key, name in SYSTEM_PROPERTIES)
    pairs = [(key, value) for key, value in system if value is not None]
    pairs += sorted(message.properties.items())
    return "&".join(f"{_encode(key, is_name=True)}={_encode(value)}" for key, value in pairs)


def decode_property_bag(bag: str, body: bytes = b"") -> Message:
    """The message of a bag and a body. A key without `=` has the empty value; of equal keys the last one counts.

    Raises:
        ContractError: a name is empty, or the percent-encoding is not UTF-8.
    """
    fields: dict[str, str] = {}
    properties: dict[str, str] = {}
    for pair in filter(None, bag.removeprefix("?").removesuffix("/").split("&")):
        raw_key, _, raw_value = pair.partition("=")
        key, value = _decode(raw_key, bag), _decode(raw_value, bag)
        if not key:
            raise _refuse(f"property name must not be empty, in the property bag {shown(bag)}")
        if key in _FIELD_OF_KEY:
            fields[_FIELD_OF_KEY[key]] = value
        else:
            properties[key] = value
    return Message(body, **fields, properties=properties)


def _encode(text: str, *, is_name: bool = False) -> str:
    if is_name and not text:
        raise _refuse("Message property name must not be empty")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise _refuse(f"Message property must be Unicode text, not {shown(text)}") from error


def _decode(text: str, bag: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise _refuse(
            f"Percent-encoding must be UTF-8, not {shown(text)}, in the property bag {shown(bag)}"
        ) from error


def _refuse(message: str) -> ContractError:
    return ContractError(message, code="property-bag")
