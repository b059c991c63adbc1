"""MQTT 3.1.1 over TLS with IoT Hub's session rules; what topics mean is the handler's business.

Rules:

- the first packet is CONNECT, within 10 s of the TCP connection; at most 1000 connections may be that young;
- one connection per identity: a new one ends the old, and `on_disconnected` of the old comes before
  `on_connected` of the new;
- the packets of one connection are handled one after another; when 64 of them or 512 KiB wait, reading pauses;
- PUBACK goes out only after `on_publish` has returned; a handler that raises ends that connection alone;
- subscriptions of an identity outlive its connection when it connects with CleanSession 0, because the device SDK
  never subscribes again; nothing else is kept: messages to an identity that is away are the caller's to keep;
- a client that lets 1 MiB of ours pile up is cut off, and so is one that is silent for 1.5 keep-alives.

Example::

    class Echo(MqttHandler):
        async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
            if connect.password != b"let me in":
                return ConnackCode.BAD_CREDENTIALS
            return Identity.parse(connect.client_id)

        async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
            return topic_filter == f"echo/{connection.identity}/#"  # False: refused, MqttReject: closed

        async def on_publish(self, connection: Connection, publish: Publish) -> None:
            if not publish.topic.startswith("say/"):
                raise MqttReject(f"unknown topic {publish.topic}")
            connection.send(f"echo/{connection.identity}/1", publish.payload)  # or await publish_acked(…)

    server = MqttServer(Echo(), host="127.0.0.1", port=8883, ssl_context=server_ssl_context(cert, key))
    await server.start()  # server.port is bound now; await server.stop() ends it
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from edge_contracts.errors import HubError
from edge_contracts.topics import filter_matches
from iot_hub.mqtt_codec import (
    MAX_REMAINING_BYTES,
    SUBSCRIBE_FAILURE,
    Connack,
    ConnackCode,
    Connect,
    Decoder,
    Disconnect,
    MqttProtocolError,
    MqttVersionError,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    encode,
)

log = logging.getLogger(__name__)

QUEUE_PACKETS = 64
QUEUE_BYTES = 512 * 1024
IN_FLIGHT = 64
WRITE_BUFFER_BYTES = 1024 * 1024
# A stranger's CONNECT may hold a will, a user name and a password; 64 KiB is ample for all three.
UNAUTHENTICATED_BYTES = 64 * 1024
# asyncio's TLS reads into a buffer of its own for every connection, 256 KiB by default; with 16 KiB, the size of
# one TLS record, an idle connection costs 42 KB in place of 288 KB.
TLS_BUFFER_BYTES = 16 * 1024
# IoT Hub's longest keep-alive; a client that asks for none is taken to mean this.
LONGEST_KEEP_ALIVE_S = 1767


class MqttReject(Exception):
    """Raised by a handler to close the connection: IoT Hub's only way to refuse something over MQTT."""


class MqttDeliveryError(HubError):
    """A message did not reach its receiver or was not acknowledged; it is the caller's to keep or to send again."""

    code = "mqtt-delivery"
    temporary = True


class MqttListenError(HubError):
    """The server's address cannot be listened on."""

    code = "mqtt-listen"


class DisconnectReason(StrEnum):
    """Why a connection ended, for `on_disconnected` and logs."""

    CLIENT = "client disconnected"
    LOST = "connection lost"
    KEEP_ALIVE = "keep-alive timed out"
    NO_CONNECT = "no CONNECT in time"
    REFUSED = "connection refused"
    PROTOCOL = "protocol error"
    REJECTED = "rejected by the handler"
    HANDLER_FAILED = "handler failed"
    SLOW_READER = "slow reader"
    TOKEN_EXPIRED = "token expired"
    TAKEN_OVER = "taken over by a new connection"
    SERVER = "closed by the server"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a connection speaks for; `str()` is the key `device` or `device/module`, which is also the client id.

    `expires_at` (seconds since 1970), when given, becomes the connection's; it is no part of equality.
    """

    device_id: str
    module_id: str | None = None
    expires_at: float | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, key: str) -> Identity:
        device_id, _, module_id = key.partition("/")
        return cls(device_id, module_id or None)

    def __str__(self) -> str:
        return self.device_id if self.module_id is None else f"{self.device_id}/{self.module_id}"


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What is known of a connection before it says who it is."""

    peer_address: str
    tls_peer_certificate_der: bytes | None = field(default=None, repr=False)


class MqttHandler(Protocol):
    """What a server does with packets. Subclass it: all but the first two methods have a default.

    All calls come from the server's event loop. Calls about one connection come one after another; calls about
    different connections interleave at every `await`.
    """

    @abstractmethod
    async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
        """Who this is, or the code to refuse it with. Takes at most 10 s, else SERVER_UNAVAILABLE is answered."""
        ...

    @abstractmethod
    async def on_publish(self, connection: Connection, publish: Publish) -> None:
        """A message came; PUBACK is sent when this returns. `connection` is closed already for a will message.

        Raises:
            MqttReject: close the connection without PUBACK.
        """
        ...

    async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
        """Whether the filter is allowed; False answers failure for it, MqttReject closes the connection."""
        return False

    async def on_unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        """A filter that was subscribed is so no longer."""

    async def load_subscriptions(self, identity: Identity) -> Iterable[str]:
        """Filters kept since an earlier process; asked once per identity that connects with CleanSession 0."""
        return ()

    async def on_connected(self, connection: Connection) -> None:
        """CONNACK has been written; nothing else of this connection has been handled yet."""

    async def on_disconnected(self, connection: Connection, reason: DisconnectReason) -> None:
        """The connection is gone; called exactly once for each connection that `on_connected` was called for."""


def server_ssl_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """TLS 1.2 and 1.3; 1.2 has to stay, as the device SDK speaks nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, private_key)
    return context


class Connection(asyncio.Protocol):
    """One client's connection, as handlers see it.

    Attributes:
        identity: whom it speaks for.
        info: peer address and TLS certificate.
        client_id, username, clean_session, keep_alive_s: as CONNECT gave them.
        expires_at: seconds since 1970 at which the server closes it, None for never; a handler may set it.
        context: free for the handler's own data about this connection.
    """

    __slots__ = (
        "__weakref__",
        "_announced",
        "_connected",
        "_decoder",
        "_in_flight",
        "_last_packet_id",
        "_outgoing",
        "_paused",
        "_queue",
        "_queued_bytes",
        "_server",
        "_transport",
        "accepted_at",
        "clean_session",
        "client_id",
        "context",
        "end_reason",
        "expires_at",
        "identity",
        "info",
        "keep_alive_s",
        "last_heard_at",
        "pump",
        "subscriptions",
        "username",
        "will",
    )

    identity: Identity

    def __init__(self, server: MqttServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(UNAUTHENTICATED_BYTES)
        self._queue: deque[Packet] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._connected = False  # CONNECT was accepted
        self._announced = False  # on_connected was called, on_disconnected not yet
        self._in_flight: dict[int, asyncio.Future[None] | None] = {}
        self._last_packet_id = 0
        self._outgoing = bytearray()
        self.accepted_at = self.last_heard_at = time.monotonic()
        self.end_reason: DisconnectReason | None = None
        self.pump: asyncio.Task[None] | None = None
        self.subscriptions: set[str] = set()
        self.will: Publish | None = None
        self.info = ConnectionInfo("")
        self.client_id = ""
        self.username: str | None = None
        self.clean_session = True
        self.keep_alive_s = 0
        self.expires_at: float | None = None
        self.context: Any = None

    def __repr__(self) -> str:
        return f"<Connection {self.client_id!r} from {self.info.peer_address}>"

    # For handlers and for those who send.

    @property
    def is_open(self) -> bool:
        return self.end_reason is None and self._connected

    def send(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Write a message without waiting for it to arrive.

        Raises:
            MqttDeliveryError: the connection is closed, or, with QoS 1, 64 messages are unacknowledged.
            ValueError: the message does not fit MQTT's format.
        """
        self._send(topic, payload, qos, None)

    async def publish_acked(self, topic: str, payload: bytes, timeout_s: float = 30.0) -> None:
        """Write a message with QoS 1 and return when the client has acknowledged it.

        To be awaited outside of this connection's own `on_publish`: while that runs long, reading may be paused.

        Raises:
            MqttDeliveryError: closed, 64 messages unacknowledged, or no PUBACK in time; the message may have
                arrived all the same.
        """
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(topic, payload, 1, acknowledged)
        try:
            async with asyncio.timeout(timeout_s):
                await acknowledged
        except TimeoutError:
            raise MqttDeliveryError(
                f"{self.client_id} did not acknowledge a message to {topic} within {timeout_s:g} s",
                where=self.client_id,
            ) from None

    def is_subscribed(self, topic: str) -> bool:
        return any(filter_matches(topic_filter, topic) for topic_filter in self.subscriptions)

    def close(self, reason: DisconnectReason = DisconnectReason.SERVER) -> None:
        """End the connection; returns at once, `on_disconnected` follows."""
        self._end(reason)

    @property
    def queued_bytes(self) -> int:
        """What waits for the handler; at most `QUEUE_BYTES` and one message more."""
        return self._queued_bytes

    def silent_s(self, now: float) -> float:
        """Seconds without a byte from the client; none while we are not reading."""
        return 0.0 if self._paused else now - self.last_heard_at

    def abort(self) -> None:
        """Cut what is left of the connection, its TLS farewell included."""
        if self._transport is not None:
            self._transport.abort()

    # Sending.

    def _send(self, topic: str, payload: bytes, qos: int, acknowledged: asyncio.Future[None] | None) -> None:
        if not self.is_open:
            raise MqttDeliveryError(f"{self.client_id} is not connected", where=self.client_id)
        packet_id = self._next_packet_id() if qos else None
        data = encode(Publish(topic, payload, qos, packet_id))
        if packet_id is not None:
            self._in_flight[packet_id] = acknowledged
        self._write(data)

    def _next_packet_id(self) -> int:
        if len(self._in_flight) >= IN_FLIGHT:
            raise MqttDeliveryError(
                f"{self.client_id} has {IN_FLIGHT} unacknowledged messages", where=self.client_id
            )
        packet_id = self._last_packet_id
        while (packet_id := packet_id % 65535 + 1) in self._in_flight:
            pass
        self._last_packet_id = packet_id
        return packet_id

    def _write(self, data: bytes) -> None:
        """Collects what one turn of the event loop writes: twenty PUBACKs then cost one TLS record, not twenty."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing += data
        if len(self._outgoing) > TLS_BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data, self._outgoing = self._outgoing, bytearray()
        if not data or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > WRITE_BUFFER_BYTES:
            self._end(DisconnectReason.SLOW_READER)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self.info = ConnectionInfo(str(peer[0]) if peer else "", certificate)
        self._server.open_transports.add(self)
        if self.end_reason is not None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.end_reason is not None:
            return
        self.last_heard_at = time.monotonic()
        try:
            packets: Iterable[Packet] = self._decoder.feed(data)
            error = None
        except MqttProtocolError as caught:
            packets, error = caught.packets, caught
        for packet in packets:
            self._receive(packet)
        if error is not None:
            self._refuse(error)
        elif len(self._queue) > QUEUE_PACKETS or self._queued_bytes > QUEUE_BYTES:
            self._pause()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.open_transports.discard(self)
        self._end(DisconnectReason.LOST)

    def _receive(self, packet: Packet) -> None:
        """PUBACK and PINGREQ overtake the queue: a slow handler must not make a client look or feel dead."""
        if self.end_reason is not None:
            return
        if self._connected and isinstance(packet, Puback):
            self._acknowledged(packet.packet_id)
        elif self._connected and isinstance(packet, Pingreq):
            self._write(encode(Pingresp()))
        else:
            self._queue.append(packet)
            self._queued_bytes += _weight(packet)
            self._start_pump()

    def _acknowledged(self, packet_id: int) -> None:
        acknowledged = self._in_flight.pop(packet_id, None)
        if acknowledged is not None and not acknowledged.done():
            acknowledged.set_result(None)

    def _refuse(self, error: MqttProtocolError) -> None:
        log.info("%r: %s", self, error)
        if isinstance(error, MqttVersionError) and not self._connected:
            self._write(encode(Connack(ConnackCode.UNACCEPTABLE_PROTOCOL_VERSION)))
        self._end(DisconnectReason.PROTOCOL)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and len(self._queue) * 2 <= QUEUE_PACKETS and self._queued_bytes * 2 <= QUEUE_BYTES:
            self._paused = False
            self.last_heard_at = time.monotonic()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # The end. The first reason counts; the pump finishes what is queued and says goodbye to the handler.

    def _end(self, reason: DisconnectReason) -> None:
        if self.end_reason is not None:
            return
        self.end_reason = reason
        if reason not in _REASONS_THAT_DRAIN:
            self._queue.clear()
        for acknowledged in self._in_flight.values():
            if acknowledged is not None and not acknowledged.done():
                acknowledged.set_exception(
                    MqttDeliveryError(
                        f"{self.client_id} went away ({reason}) before it acknowledged a message",
                        where=self.client_id,
                    )
                )
        self._in_flight.clear()
        if self._transport is not None:
            if reason in _REASONS_THAT_ABORT:
                self._transport.abort()
            else:
                self._flush()
                self._transport.close()
        self._start_pump()

    # The pump: a task that lives only while there is something to handle, so that idle connections have none.

    def _start_pump(self) -> None:
        if self.pump is None:
            self.pump = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._queue:
            packet = self._queue.popleft()
            self._queued_bytes -= _weight(packet)
            self._resume()
            await self._handle_safely(packet)
        if self.end_reason is not None:
            await self.finish()
        self.pump = None

    async def _handle_safely(self, packet: Packet) -> None:
        try:
            await self._handle(packet)
        except MqttProtocolError as error:
            self._queue.clear()
            self._refuse(error)
        except MqttReject as reject:
            log.info("%r: rejected: %s", self, reject)
            self._end_now(DisconnectReason.REJECTED)
        except Exception:
            log.exception("%r: the handler failed on %s", self, type(packet).__name__)
            self._end_now(DisconnectReason.HANDLER_FAILED)

    def _end_now(self, reason: DisconnectReason) -> None:
        self._queue.clear()
        self._end(reason)

    async def _handle(self, packet: Packet) -> None:
        if not self._connected:
            if not isinstance(packet, Connect):
                raise MqttProtocolError(f"the first packet must be CONNECT, found {type(packet).__name__}")
            await self._connect(packet)
            return
        handle = _HANDLERS.get(type(packet))
        if handle is None:
            raise MqttProtocolError(f"a connected client may not send {type(packet).__name__}")
        await handle(self, packet)

    async def _connect(self, connect: Connect) -> None:
        self.client_id = connect.client_id
        verdict = ConnackCode.SERVER_UNAVAILABLE if self.end_reason else await self._authenticate(connect)
        if isinstance(verdict, ConnackCode):
            self._write(encode(Connack(verdict)))
            self._end_now(DisconnectReason.REFUSED)
            return
        self.identity = verdict
        self.expires_at = verdict.expires_at
        self.username = connect.username
        self.clean_session = connect.clean_session
        self.keep_alive_s = connect.keep_alive_s
        if connect.will is not None:
            self.will = Publish(connect.will.topic, connect.will.payload, retain=connect.will.retain)
        self._decoder.max_remaining_bytes = MAX_REMAINING_BYTES
        session_present = await self._server.admit(self)
        if self.end_reason is not None:  # it left, or a newer connection took over, in the meantime
            self._queue.clear()
            return
        self._connected = True
        self._write(encode(Connack(ConnackCode.ACCEPTED, session_present)))
        self._announced = True
        await self._server.handler.on_connected(self)

    async def _authenticate(self, connect: Connect) -> Identity | ConnackCode:
        if not connect.client_id:
            return ConnackCode.IDENTIFIER_REJECTED
        try:
            async with asyncio.timeout(self._server.connect_timeout_s):
                return await self._server.handler.authenticate(connect, self.info)
        except TimeoutError:
            log.warning("%r: authentication took longer than %g s", self, self._server.connect_timeout_s)
            return ConnackCode.SERVER_UNAVAILABLE

    async def _on_publish(self, publish: Publish) -> None:
        await self._server.handler.on_publish(self, publish)
        if publish.packet_id is not None:
            self._write(encode(Puback(publish.packet_id)))

    async def _on_subscribe(self, subscribe: Subscribe) -> None:
        codes = []
        for position, (topic_filter, qos) in enumerate(subscribe.filters):
            allowed = position < self._server.max_subscriptions and await self._subscribe(topic_filter)
            codes.append(min(qos, 1) if allowed else SUBSCRIBE_FAILURE)
        self._write(encode(Suback(subscribe.packet_id, tuple(codes))))

    async def _subscribe(self, topic_filter: str) -> bool:
        full = len(self.subscriptions) >= self._server.max_subscriptions
        if full and topic_filter not in self.subscriptions:
            return False
        allowed = await self._server.handler.on_subscribe(self, topic_filter)
        if allowed:
            self.subscriptions.add(topic_filter)
        return allowed

    async def _on_unsubscribe(self, unsubscribe: Unsubscribe) -> None:
        for topic_filter in unsubscribe.filters:
            if topic_filter in self.subscriptions:
                self.subscriptions.discard(topic_filter)
                await self._server.handler.on_unsubscribe(self, topic_filter)
        self._write(encode(Unsuback(unsubscribe.packet_id)))

    async def _on_disconnect(self, _packet: Disconnect) -> None:
        self.will = None
        self._end_now(DisconnectReason.CLIENT)
        self.end_reason = DisconnectReason.CLIENT

    async def finish(self) -> None:
        """Will message and `on_disconnected`, once; called by the pump, or by the server for a pump it cancelled."""
        self._server.release(self)
        will, self.will = self.will, None
        announced, self._announced = self._announced, False
        reason = self.end_reason or DisconnectReason.LOST
        if not announced:
            return
        try:
            if will is not None and not self._server.is_stopping:
                await self._server.handler.on_publish(self, will)
        except MqttReject as reject:
            log.info("%r: will message rejected: %s", self, reject)
        except Exception:
            log.exception("%r: the handler failed on the will message", self)
        try:
            await self._server.handler.on_disconnected(self, reason)
        except Exception:
            log.exception("%r: the handler failed on the end of the connection", self)


# What these end may still have sent good packets before: they are handled, as a device that publishes and leaves expects.
_REASONS_THAT_DRAIN = frozenset(
    {
        DisconnectReason.LOST,
        DisconnectReason.PROTOCOL,
        DisconnectReason.KEEP_ALIVE,
        DisconnectReason.TAKEN_OVER,
    }
)
# Here the peer is not expected to read any more, so there is no farewell to wait for.
_REASONS_THAT_ABORT = frozenset(
    {
        DisconnectReason.LOST,
        DisconnectReason.KEEP_ALIVE,
        DisconnectReason.NO_CONNECT,
        DisconnectReason.SLOW_READER,
        DisconnectReason.TAKEN_OVER,
    }
)
_HANDLERS: dict[type, Callable[[Connection, Any], Any]] = {
    Publish: Connection._on_publish,
    Subscribe: Connection._on_subscribe,
    Unsubscribe: Connection._on_unsubscribe,
    Disconnect: Connection._on_disconnect,
}


def _weight(packet: Packet) -> int:
    return len(packet.payload) if isinstance(packet, Publish) else 64


class MqttServer:
    """Accepts connections, keeps one per identity, and their subscriptions.

    Args:
        host: one address or name to listen on; the first address of a name counts.
        port: 0 takes a free one.
        connect_timeout_s: for the TLS handshake, for CONNECT to come, and for `authenticate`.
        max_unauthenticated: connections that may be between accept and CONNACK.
        max_subscriptions: per identity.
        drain_timeout_s: how long the handler's last call about a connection may go on after the connection ended;
            then it is cancelled.
        wall_clock: seconds since 1970, for `expires_at`.

    Attributes:
        port: the bound port once `start` has returned.
    """

    def __init__(
        self,
        handler: MqttHandler,
        *,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext,
        connect_timeout_s: float = 10.0,
        max_unauthenticated: int = 1000,
        max_subscriptions: int = 50,
        sweep_interval_s: float = 1.0,
        drain_timeout_s: float = 10.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.handler = handler
        self.host = host
        self.port = port
        self.connect_timeout_s = connect_timeout_s
        self.max_subscriptions = max_subscriptions
        self.is_stopping = False
        self.open_transports: set[Connection] = set()
        self._ssl_context = ssl_context
        self._max_unauthenticated = max_unauthenticated
        self._sweep_interval_s = sweep_interval_s
        self._drain_timeout_s = drain_timeout_s
        self._wall_clock = wall_clock
        self._unauthenticated: set[Connection] = set()
        self._connections: dict[str, Connection] = {}
        self._subscriptions: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            MqttListenError: the address is taken, not ours, or not allowed.
        """
        _shrink_tls_buffers()
        self._socket = _listen(self.host, self.port)
        self.port = self._socket.getsockname()[1]
        self._spawn(self._accept(self._socket))
        self._spawn(self._sweep())

    async def stop(self) -> None:
        """Stop listening, end every connection and wait, at most 10 s, until handlers have heard of it."""
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        ending = [*self._connections.values(), *self._unauthenticated]
        for connection in ending:
            connection.close()
        await asyncio.gather(*(self._retire(connection) for connection in ending))
        for connection in list(self.open_transports):
            connection.abort()

    # For the hub.

    def connection(self, identity: Identity | str) -> Connection | None:
        """The identity's open connection, if it has one."""
        connection = self._connections.get(str(identity))
        return connection if connection is not None and connection.is_open else None

    def connected_identities(self) -> tuple[Identity, ...]:
        return tuple(c.identity for c in self._connections.values() if c.is_open)

    def is_subscribed(self, identity: Identity | str, topic: str) -> bool:
        """Whether a message on `topic` is wanted; true of an absent identity, too, when its session is kept."""
        filters = self._subscriptions.get(str(identity), ())
        return any(filter_matches(topic_filter, topic) for topic_filter in filters)

    def disconnect(
        self, identity: Identity | str, reason: DisconnectReason = DisconnectReason.SERVER
    ) -> None:
        """Close the identity's connection, if it has one; `on_disconnected` follows."""
        if (connection := self._connections.get(str(identity))) is not None:
            connection.close(reason)

    def forget(self, identity: Identity | str) -> None:
        """Disconnect an identity that no longer exists and drop its subscriptions."""
        self.disconnect(identity)
        self._subscriptions.pop(str(identity), None)

    # For connections.

    async def admit(self, connection: Connection) -> bool:
        """Make this the identity's one connection; returns whether a kept session was found."""
        key = str(connection.identity)
        while (old := self._connections.get(key)) is not None:
            old.close(DisconnectReason.TAKEN_OVER)
            await self._retire(old)
        self._unauthenticated.discard(connection)
        if connection.end_reason is not None:
            return False
        self._connections[key] = connection
        session_present = not connection.clean_session and key in self._subscriptions
        if connection.clean_session:
            self._subscriptions[key] = set()
        elif not session_present:
            kept = set(await self.handler.load_subscriptions(connection.identity))
            self._subscriptions[key] = kept
            session_present = bool(kept)
        connection.subscriptions = self._subscriptions[key]
        return session_present

    def release(self, connection: Connection) -> None:
        """Forget a connection that ended; its subscriptions go with it when its session was a clean one."""
        self._unauthenticated.discard(connection)
        identity = getattr(connection, "identity", None)
        if identity is None or self._connections.get(str(identity)) is not connection:
            return
        del self._connections[str(identity)]
        if connection.clean_session:
            self._subscriptions.pop(str(identity), None)

    async def _retire(self, connection: Connection) -> None:
        """Wait until a closed connection is finished; what its handler does for too long is cancelled."""
        pump = connection.pump
        if pump is None:
            return
        await asyncio.wait({pump}, timeout=self._drain_timeout_s)
        if not pump.done():
            log.warning("%r: its handler is still busy %g s after the end", connection, self._drain_timeout_s)
            pump.cancel()
            await asyncio.wait({pump}, timeout=self._drain_timeout_s)
            await connection.finish()

    # Accepting and sweeping.

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        """Own accept loop: asyncio's would begin a TLS handshake for every stranger, without a bound."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue
                log.error("cannot accept connections (%s); trying again in 1 s", error.strerror)
                await asyncio.sleep(1)
                continue
            if len(self._unauthenticated) >= self._max_unauthenticated:
                client.close()
                continue
            connection = Connection(self)
            self._unauthenticated.add(connection)
            self._spawn(self._handshake(connection, client))

    async def _handshake(self, connection: Connection, client: socket.socket) -> None:
        try:
            # asyncio does this only for sockets whose protocol number is set, which accepted ones' is not; without
            # it an acknowledgement may wait 40 ms for the client's.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                client,
                ssl=self._ssl_context,
                ssl_handshake_timeout=self.connect_timeout_s,
                ssl_shutdown_timeout=2.0,
            )
        except OSError as error:  # ssl.SSLError and ConnectionError are such; asyncio closes the socket
            log.debug("TLS handshake failed: %s", error)
            self._unauthenticated.discard(connection)

    async def _sweep(self) -> None:
        """One timer for all connections: thousands of idle ones cost a walk through a dict each second."""
        while True:
            await asyncio.sleep(self._sweep_interval_s)
            now, wall = time.monotonic(), self._wall_clock()
            for connection in list(self._unauthenticated):
                if now - connection.accepted_at > self.connect_timeout_s and not connection.client_id:
                    connection.close(DisconnectReason.NO_CONNECT)
            for connection in list(self._connections.values()):
                keep_alive_s = connection.keep_alive_s or LONGEST_KEEP_ALIVE_S
                if connection.silent_s(now) > 1.5 * keep_alive_s:
                    connection.close(DisconnectReason.KEEP_ALIVE)
                elif connection.expires_at is not None and wall >= connection.expires_at:
                    connection.close(DisconnectReason.TOKEN_EXPIRED)


def _shrink_tls_buffers() -> None:
    """No public knob exists; where a future asyncio has no such attribute, connections only cost more memory."""
    from asyncio import sslproto

    protocol = getattr(sslproto, "SSLProtocol", None)
    if protocol is not None and isinstance(getattr(protocol, "max_size", None), int):
        protocol.max_size = min(protocol.max_size, TLS_BUFFER_BYTES)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _type, _protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise MqttListenError(
            f"cannot listen for MQTT on {host}:{port}: {error.strerror or error}; expected a free address of this machine",
            where=f"{host}:{port}",
        ) from error
    listener.setblocking(False)
    return listener
