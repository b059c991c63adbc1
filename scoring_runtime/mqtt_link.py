"""One MQTT/TLS connection to the device's edge hub, with paho-mqtt 1.6.1 or 2.x.

Everything happens in the calling thread, one `turn` at a time: paho's own thread is not used, because two threads
may not use one TLS connection, and because only a caller that turns can stop reading.

A QoS 1 message is acknowledged by `acknowledge` and not when it arrives. paho 2 has that as an option. In 1.6.1, the
last of its line, the acknowledgement is sent by one method, which `_LateAck` holds back.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

from .errors import ScoringError

PORT = 8883
KEEP_ALIVE_S = 60
_ANSWER_TIMEOUT_S = 20.0
_CLOSE_TIMEOUT_S = 1.0

_BAD_TOKEN = "it does not accept this module's token"
# CONNACK codes of MQTT 3.1.1; paho 2 gives them as those of MQTT 5.
_REFUSALS = {
    4: _BAD_TOKEN,
    5: _BAD_TOKEN,
    134: _BAD_TOKEN,
    135: _BAD_TOKEN,
    3: "unavailable",
    136: "unavailable",
}

OnMessage = Callable[[str, bytes, int], None]
OnAcked = Callable[[int], None]


class LinkError(ScoringError):
    """The connection failed, was refused or was lost; another may do."""

    code = "edge-hub-connection"
    temporary = True


class _LateAck(mqtt.Client):
    """paho 1.6.1 without its automatic PUBACK."""

    def _send_puback(self, mid: int) -> Any:
        return mqtt.MQTT_ERR_SUCCESS

    def ack(self, mid: int, qos: int) -> Any:
        return super()._send_puback(mid)


class MqttLink:
    """`on_message(topic, payload, packet id)` and `on_acked(packet id of ours)` are called inside `turn`."""

    def __init__(
        self,
        host: str,
        *,
        client_id: str,
        username: str,
        password: str,
        trust_bundle: str,
        on_message: OnMessage,
        on_acked: OnAcked,
    ) -> None:
        self._host = host
        self._client = _make_client(client_id)
        self._client.username_pw_set(username, password)
        self._client.tls_set_context(_tls_context(trust_bundle))
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda client, data, m: on_message(
            m.topic, m.payload, m.mid if m.qos else 0
        )
        self._client.on_publish = lambda client, data, mid, *more: on_acked(mid)
        self._connected: int | None = None
        self._granted: int | None = None

    def open(self, topic_filter: str, wake: socket.socket) -> None:
        """Connect and subscribe at QoS 1.

        Raises:
            LinkError: refused, or no answer in time.
        """
        try:
            self._client.connect(self._host, PORT, KEEP_ALIVE_S)
        except (OSError, ValueError) as error:
            raise LinkError(f"cannot connect to {self._host}:{PORT}: {error}") from error
        self._await("CONNECT", lambda: self._connected, wake)
        if self._connected:
            reason = _REFUSALS.get(self._connected, f"MQTT return code {self._connected}")
            raise LinkError(f"{self._host}:{PORT} refuses the connection: {reason}")
        self._client.subscribe(topic_filter, qos=1)
        self._await("SUBSCRIBE", lambda: self._granted, wake)
        if self._granted is not None and self._granted >= 128:
            raise LinkError(f"{self._host}:{PORT} refuses the subscription to {topic_filter}")

    def turn(self, wake: socket.socket, timeout_s: float, *, read: bool = True) -> None:
        """Wait for the network or for a byte on `wake`, then do what there is to do.

        Raises:
            LinkError: the connection is lost.
        """
        sock = self._socket()
        if read and _has_buffered(sock):
            timeout_s = 0.0
        readers = [sock, wake] if read else [wake]
        readable, writable, _ = select.select(
            readers, [sock] if self._client.want_write() else [], [], timeout_s
        )
        if wake in readable:
            _empty(wake)
        if sock in readable or (read and _has_buffered(sock)):
            self._check(self._client.loop_read())
        if writable:
            self._check(self._client.loop_write())
        self._check(self._client.loop_misc())

    def publish(self, topic: str, payload: bytes) -> int:
        """Send at QoS 1; the packet id that `on_acked` will name.

        Raises:
            LinkError: the connection is lost.
        """
        info = self._client.publish(topic, payload, qos=1)
        self._check(info.rc)
        return int(info.mid)

    def acknowledge(self, packet_id: int) -> None:
        self._check(self._client.ack(packet_id, 1))

    def close(self) -> None:
        """Say goodbye if the peer still listens, and close."""
        sock = self._client.socket()
        if sock is None:
            return
        try:
            self._client.disconnect()
            deadline = time.monotonic() + _CLOSE_TIMEOUT_S
            while self._client.socket() is not None and time.monotonic() < deadline:
                select.select([], [sock], [], _CLOSE_TIMEOUT_S)
                self._client.loop_write()
        except (OSError, ValueError):
            pass  # it was lost while we were leaving
        sock.close()

    def _await(self, what: str, answer: Callable[[], int | None], wake: socket.socket) -> None:
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while answer() is None:
            if time.monotonic() >= deadline:
                raise LinkError(f"{self._host}:{PORT} did not answer {what} within {_ANSWER_TIMEOUT_S:g} s")
            self.turn(wake, 1.0)

    def _socket(self) -> Any:
        sock = self._client.socket()
        if sock is None:
            raise LinkError(f"{self._host}:{PORT} closed the connection")
        return sock

    def _check(self, code: Any) -> None:
        if code not in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_AGAIN):
            if self._connected:
                return  # paho reports the refusal, too; `open` says it better
            raise LinkError(f"the connection to {self._host}:{PORT} is lost: {mqtt.error_string(code)}")

    def _on_connect(self, client: Any, data: Any, flags: Any, code: Any, *more: Any) -> None:
        self._connected = _number(code)

    def _on_subscribe(self, client: Any, data: Any, mid: int, granted: Any, *more: Any) -> None:
        self._granted = max(map(_number, granted))


def _make_client(client_id: str) -> Any:
    options: dict[str, Any] = {"client_id": client_id, "clean_session": False, "protocol": mqtt.MQTTv311}
    versions = getattr(mqtt, "CallbackAPIVersion", None)  # since paho 2.0
    if versions is None:
        return _LateAck(**options)
    return mqtt.Client(versions.VERSION2, manual_ack=True, **options)


def _tls_context(trust_bundle: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=trust_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise LinkError(f"the workload API's trust bundle holds no usable certificate: {error}") from error
    return context


def _number(code: Any) -> int:
    """A return code: an int in paho 1, an object with `.value` in paho 2."""
    return int(getattr(code, "value", code))


def _has_buffered(sock: Any) -> bool:
    """TLS may have decrypted more than was read; select cannot see that."""
    return bool(sock.pending()) if hasattr(sock, "pending") else False


def _empty(wake: socket.socket) -> None:
    try:
        while wake.recv(4096):
            pass
    except BlockingIOError:
        pass
