"""MQTT 3.1.1 packets as values, without I/O: bytes in, packets out, and back.

Rules held here (clauses are of the OASIS MQTT 3.1.1 standard):

- any split of a byte stream gives the same packets; `Decoder.feed` keeps what is incomplete;
- what the standard forbids raises `MqttProtocolError`, and nothing else is ever raised for received bytes;
- QoS 2 does not exist, because IoT Hub closes a connection that uses it; a subscription may ask for it and is
  granted 1;
- a packet is at most 256 KiB of payload plus the longest topic, IoT Hub's message limit.

Example::

    decoder = Decoder()
    decoder.feed(encode(Pingreq()))          # [Pingreq()]
    decoder.feed(encode(publish)[:3])        # []: the rest is still to come
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from edge_contracts.errors import HubError

MAX_PAYLOAD_BYTES = 256 * 1024
# Two length-prefixed fields may stand before a payload: the topic and the packet id.
MAX_REMAINING_BYTES = MAX_PAYLOAD_BYTES + 2 + 65535 + 2
SUBSCRIBE_FAILURE = 0x80
PROTOCOL_LEVEL = 4


class MqttProtocolError(HubError):
    """The peer sent what MQTT 3.1.1 forbids; the connection cannot go on.

    Attributes:
        packets: whole packets that came before the offending one in the same `feed`.
    """

    code = "mqtt-protocol"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.packets: tuple[Packet, ...] = ()


class MqttVersionError(MqttProtocolError):
    """CONNECT asks for another protocol version; the answer is CONNACK 1 (3.1.2.2)."""

    code = "mqtt-version"


class ConnackCode(IntEnum):
    """Return codes of CONNACK (table 3.1)."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_VERSION = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the server publishes for a client that vanishes."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Connect:
    client_id: str
    keep_alive_s: int = 60
    clean_session: bool = True
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    will: Will | None = None


@dataclass(frozen=True, slots=True)
class Connack:
    code: ConnackCode
    session_present: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; `packet_id` is set exactly when `qos` is 1."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int = 0
    packet_id: int | None = None
    retain: bool = False
    dup: bool = False


@dataclass(frozen=True, slots=True)
class Puback:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Suback:
    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsuback:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Pingreq:
    pass


@dataclass(frozen=True, slots=True)
class Pingresp:
    pass


@dataclass(frozen=True, slots=True)
class Disconnect:
    pass


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)


def check_topic_name(topic: str) -> None:
    """Raises MqttProtocolError for a name that no message can have (4.7.1, 4.7.3)."""
    if not topic:
        raise MqttProtocolError("topic name must have at least one character, found none")
    if "+" in topic or "#" in topic:
        raise MqttProtocolError(f"topic name must have no wildcard, found {topic[:80]!r}")


def check_topic_filter(topic_filter: str) -> None:
    """Raises MqttProtocolError for a filter whose wildcards do not fill whole levels (4.7.1)."""
    levels = topic_filter.split("/")
    wrong = any("#" in level or ("+" in level and level != "+") for level in levels[:-1])
    last = levels[-1]
    wrong = wrong or (last not in ("#", "+") and ("#" in last or "+" in last))
    if not topic_filter or wrong:
        raise MqttProtocolError(
            f"topic filter must use '+' for one whole level and '#' for the last, found {topic_filter[:80]!r}"
        )


class _Body:
    """Reads the fields of one packet; running out of bytes is a protocol error."""

    __slots__ = ("_data", "_position", "name")

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise MqttProtocolError(f"{self.name} ends early: {count} bytes expected at {self._position}")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._position)

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        piece = self.take(2)
        return piece[0] << 8 | piece[1]

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            text = self.binary().decode("utf-8")
        except UnicodeDecodeError:
            raise MqttProtocolError(f"{self.name} holds a string that is not UTF-8") from None
        if "\0" in text:
            raise MqttProtocolError(f"{self.name} holds a string with U+0000, which 1.5.3 forbids")
        return text

    def packet_id(self) -> int:
        packet_id = self.number()
        if packet_id == 0:
            raise MqttProtocolError(f"{self.name} has packet id 0; it must be 1 to 65535")
        return packet_id

    def more(self) -> bool:
        return self._position < len(self._data)

    def end(self) -> None:
        if self.more():
            raise MqttProtocolError(f"{self.name} has {len(self._data) - self._position} bytes too many")


def _read_connect(_flags: int, body: _Body) -> Connect:
    protocol = body.text()
    level = body.byte()
    if (protocol, level) != ("MQTT", PROTOCOL_LEVEL):
        raise MqttVersionError(
            f"protocol must be MQTT level 4 (3.1.1), found {protocol[:20]!r} level {level}"
        )
    flags = body.byte()
    has_user, has_password, has_will = flags & 0x80, flags & 0x40, flags & 0x04
    will_qos = flags >> 3 & 3
    if flags & 0x01 or will_qos == 3 or (not has_will and flags & 0x38) or (has_password and not has_user):
        raise MqttProtocolError(f"CONNECT has impossible flags 0x{flags:02x}")
    keep_alive_s = body.number()
    client_id = body.text()
    will = None
    if has_will:
        topic = body.text()
        check_topic_name(topic)
        will = Will(topic, body.binary(), qos=will_qos, retain=bool(flags & 0x20))
    username = body.text() if has_user else None
    password = body.binary() if has_password else None
    return Connect(client_id, keep_alive_s, bool(flags & 0x02), username, password, will)


def _read_connack(_flags: int, body: _Body) -> Connack:
    acknowledge, code = body.byte(), body.byte()
    if acknowledge > 1 or code > max(ConnackCode):
        raise MqttProtocolError(f"CONNACK has flags {acknowledge} and code {code}, which do not exist")
    return Connack(ConnackCode(code), session_present=bool(acknowledge))


def _read_publish(flags: int, body: _Body) -> Publish:
    qos = flags >> 1 & 3
    dup = bool(flags & 8)
    if qos > 1 or (dup and qos == 0):
        raise MqttProtocolError(f"PUBLISH must have QoS 0 or 1, and DUP with 1 only; found flags 0x{flags:x}")
    topic = body.text()
    check_topic_name(topic)
    packet_id = body.packet_id() if qos else None
    payload = body.rest()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MqttProtocolError(
            f"PUBLISH payload must be at most {MAX_PAYLOAD_BYTES} bytes, found {len(payload)}"
        )
    return Publish(topic, payload, qos, packet_id, bool(flags & 1), dup)


def _read_subscribe(_flags: int, body: _Body) -> Subscribe:
    packet_id = body.packet_id()
    filters = []
    while body.more():
        topic_filter, qos = body.text(), body.byte()
        check_topic_filter(topic_filter)
        if qos > 2:
            raise MqttProtocolError(f"SUBSCRIBE asks for QoS {qos}; it must be 0, 1 or 2")
        filters.append((topic_filter, qos))
    if not filters:
        raise MqttProtocolError("SUBSCRIBE must name at least one topic filter")
    return Subscribe(packet_id, tuple(filters))


def _read_suback(_flags: int, body: _Body) -> Suback:
    packet_id = body.packet_id()
    codes = tuple(body.rest())
    if not codes or any(code > 2 and code != SUBSCRIBE_FAILURE for code in codes):
        raise MqttProtocolError(f"SUBACK must hold return codes 0, 1, 2 or 128, found {list(codes)[:10]}")
    return Suback(packet_id, codes)


def _read_unsubscribe(_flags: int, body: _Body) -> Unsubscribe:
    packet_id = body.packet_id()
    filters = []
    while body.more():
        topic_filter = body.text()
        check_topic_filter(topic_filter)
        filters.append(topic_filter)
    if not filters:
        raise MqttProtocolError("UNSUBSCRIBE must name at least one topic filter")
    return Unsubscribe(packet_id, tuple(filters))


@dataclass(frozen=True, slots=True)
class _Kind:
    """One row of the packet table; `flags` is the fixed header's low nibble, None where it varies (2.2.2)."""

    name: str
    flags: int | None
    read: Callable[[int, _Body], Packet]


_KINDS: dict[int, _Kind] = {
    1: _Kind("CONNECT", 0, _read_connect),
    2: _Kind("CONNACK", 0, _read_connack),
    3: _Kind("PUBLISH", None, _read_publish),
    4: _Kind("PUBACK", 0, lambda _flags, body: Puback(body.packet_id())),
    8: _Kind("SUBSCRIBE", 2, _read_subscribe),
    9: _Kind("SUBACK", 0, _read_suback),
    10: _Kind("UNSUBSCRIBE", 2, _read_unsubscribe),
    11: _Kind("UNSUBACK", 0, lambda _flags, body: Unsuback(body.packet_id())),
    12: _Kind("PINGREQ", 0, lambda _flags, _body: Pingreq()),
    13: _Kind("PINGRESP", 0, lambda _flags, _body: Pingresp()),
    14: _Kind("DISCONNECT", 0, lambda _flags, _body: Disconnect()),
}


def _kind_of(first: int) -> _Kind:
    kind = _KINDS.get(first >> 4)
    if kind is None:
        raise MqttProtocolError(
            f"packet type {first >> 4} is not spoken here: QoS 0 and 1 of MQTT 3.1.1 alone"
        )
    if kind.flags is not None and kind.flags != first & 15:
        raise MqttProtocolError(f"{kind.name} must have flags {kind.flags}, found {first & 15}")
    return kind


class Decoder:
    """Turns a stream of bytes into packets; one per connection and direction."""

    __slots__ = ("_buffer", "_error", "_wanted", "max_remaining_bytes")

    def __init__(self, max_remaining_bytes: int = MAX_REMAINING_BYTES) -> None:
        self.max_remaining_bytes = max_remaining_bytes
        self._buffer = bytearray()
        self._wanted = 2  # bytes the buffer needs before looking again is worth it
        self._error: MqttProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet]:
        """The packets that `data` completes, in order.

        Raises:
            MqttProtocolError: with the packets before the offending one in `.packets`; and again ever after.
        """
        if self._error is not None:
            raise MqttProtocolError(self._error.message)
        self._buffer += data
        packets: list[Packet] = []
        try:
            while len(self._buffer) >= self._wanted and (packet := self._next()) is not None:
                packets.append(packet)
        except MqttProtocolError as error:
            error.packets = tuple(packets)
            self._error = error
            self._buffer = bytearray()
            raise
        return packets

    def _next(self) -> Packet | None:
        kind = _kind_of(self._buffer[0])
        header = self._header(kind.name)
        if header is None:
            return None
        start, remaining = header
        if len(self._buffer) < start + remaining:
            self._wanted = start + remaining
            return None
        flags = self._buffer[0] & 15
        body = _Body(kind.name, bytes(self._buffer[start : start + remaining]))
        del self._buffer[: start + remaining]
        self._wanted = 2
        packet = kind.read(flags, body)
        body.end()
        return packet

    def _header(self, name: str) -> tuple[int, int] | None:
        """Where the body starts and how long it is, or None when the length is still incomplete (2.2.3)."""
        remaining = 0
        for index in range(1, min(len(self._buffer), 5)):
            digit = self._buffer[index]
            remaining |= (digit & 127) << 7 * (index - 1)
            if not digit & 128:
                if remaining > self.max_remaining_bytes:
                    raise MqttProtocolError(
                        f"{name} must be at most {self.max_remaining_bytes} bytes here, found {remaining}"
                    )
                return index + 1, remaining
        if len(self._buffer) >= 5:
            raise MqttProtocolError(f"{name} has a remaining length of more than 4 bytes")
        self._wanted = len(self._buffer) + 1
        return None


def _string(text: str) -> bytes:
    return _blob(text.encode("utf-8"))


def _blob(data: bytes) -> bytes:
    if len(data) > 65535:
        raise ValueError(f"an MQTT field must be at most 65535 bytes, not {len(data)}")
    return struct.pack("!H", len(data)) + data


def _id(packet_id: int | None) -> bytes:
    if packet_id is None or not 1 <= packet_id <= 65535:
        raise ValueError(f"packet_id must be 1 to 65535, not {packet_id}")
    return struct.pack("!H", packet_id)


def _frame(first: int, body: bytes) -> bytes:
    length = len(body)
    digits = bytearray()
    while True:
        length, digit = length >> 7, length & 127
        digits.append(digit | 128 if length else digit)
        if not length:
            return bytes((first,)) + digits + body


def _write_connect(packet: Connect) -> bytes:
    flags = 0x02 if packet.clean_session else 0
    fields = [_string(packet.client_id)]
    if packet.will is not None:
        flags |= 0x04 | packet.will.qos << 3 | (0x20 if packet.will.retain else 0)
        fields += [_string(packet.will.topic), _blob(packet.will.payload)]
    if packet.username is not None:
        flags |= 0x80
        fields.append(_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        fields.append(_blob(packet.password))
    head = _string("MQTT") + struct.pack("!BBH", PROTOCOL_LEVEL, flags, packet.keep_alive_s)
    return _frame(0x10, head + b"".join(fields))


def _write_publish(packet: Publish) -> bytes:
    if packet.qos not in (0, 1) or (packet.packet_id is not None) != (packet.qos == 1):
        raise ValueError(f"a message has QoS 0 and no packet id or QoS 1 and one, not QoS {packet.qos}")
    if len(packet.payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"payload must be at most {MAX_PAYLOAD_BYTES} bytes, not {len(packet.payload)}")
    if not packet.topic or set("+#\0") & set(packet.topic):
        raise ValueError(f"topic must be a name without wildcards, not {packet.topic[:80]!r}")
    first = 0x30 | packet.dup << 3 | packet.qos << 1 | packet.retain
    packet_id = _id(packet.packet_id) if packet.qos else b""
    return _frame(first, _string(packet.topic) + packet_id + packet.payload)


def _write_subscribe(packet: Subscribe) -> bytes:
    filters = b"".join(_string(topic_filter) + bytes((qos,)) for topic_filter, qos in packet.filters)
    return _frame(0x82, _id(packet.packet_id) + filters)


_WRITERS: dict[type, Callable[..., bytes]] = {
    Connect: _write_connect,
    Connack: lambda packet: _frame(0x20, bytes((packet.session_present, packet.code))),
    Publish: _write_publish,
    Puback: lambda packet: _frame(0x40, _id(packet.packet_id)),
    Subscribe: _write_subscribe,
    Suback: lambda packet: _frame(0x90, _id(packet.packet_id) + bytes(packet.codes)),
    Unsubscribe: lambda packet: _frame(0xA2, _id(packet.packet_id) + b"".join(map(_string, packet.filters))),
    Unsuback: lambda packet: _frame(0xB0, _id(packet.packet_id)),
    Pingreq: lambda _packet: b"\xc0\x00",
    Pingresp: lambda _packet: b"\xd0\x00",
    Disconnect: lambda _packet: b"\xe0\x00",
}


def encode(packet: Packet) -> bytes:
    """The bytes of one packet.

    Raises:
        ValueError: a field does not fit the format (a caller's mistake, never a peer's).
    """
    return _WRITERS[type(packet)](packet)
