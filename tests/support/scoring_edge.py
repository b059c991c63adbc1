"""A device as a module sees it: the MQTT/TLS server of an edge hub and the workload API, both in threads here.

The hub half keeps an input until the module has acknowledged it and delivers it again on the next connection, as
IoT Edge does; it can withhold acknowledgements of outputs, drop the connection and refuse tokens.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import queue
import socketserver
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from edge_contracts.sas import verify_sas
from iot_hub.mqtt_codec import ConnackCode, Connect, Publish
from iot_hub.mqtt_server import (
    Connection,
    ConnectionInfo,
    DisconnectReason,
    Identity,
    MqttHandler,
    MqttServer,
    server_ssl_context,
)
from iot_hub.pki import PkiFiles

KEY = base64.b64encode(b"k" * 32).decode()
HUB, DEVICE, MODULE = "hub.test", "dev 1", "scorer"
PORT = 8883
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Output:
    """What the module published: the decoded bag and the body."""

    properties: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class EdgeDouble:
    """`with EdgeDouble(pki, folder, "127.0.0.9") as edge:` then `edge.environment()`, `edge.send(…)`, `edge.output()`."""

    def __init__(self, pki: PkiFiles, folder: Path, host: str) -> None:
        self.host = host
        self.pki = pki
        self.refuse_tokens = False
        self.acknowledge_outputs = True
        self.connects: list[Connect] = []
        self.unacknowledged: dict[int, tuple[str, bytes]] = {}
        self._outputs: queue.Queue[Output] = queue.Queue()
        self._numbers = iter(range(1, 1_000_000))
        self._socket = folder / "workload.sock"
        self._loop = asyncio.new_event_loop()
        self._hub = _Hub(self)
        self._server = MqttServer(
            self._hub,
            host=host,
            port=PORT,
            ssl_context=server_ssl_context(pki.server_cert, pki.server_key),
        )
        self._workload = _workload_server(self._socket, pki.ca_cert.read_text())

    def __enter__(self) -> EdgeDouble:
        runs: list[Callable[[], None]] = [self._loop.run_forever, lambda: self._workload.serve_forever(0.02)]
        self._threads = [threading.Thread(target=run, daemon=True) for run in runs]
        for thread in self._threads:
            thread.start()
        self.call(self._server.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._workload.shutdown()
        self._workload.server_close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self._loop.close()

    def environment(self) -> dict[str, str]:
        return {
            "IOTEDGE_IOTHUBHOSTNAME": HUB,
            "IOTEDGE_DEVICEID": DEVICE,
            "IOTEDGE_MODULEID": MODULE,
            "IOTEDGE_GATEWAYHOSTNAME": self.host,
            "IOTEDGE_MODULEGENERATIONID": "638",
            "IOTEDGE_WORKLOADURI": f"unix://{self._socket}",
            "IOTEDGE_APIVERSION": "2022-08-03",
        }

    def send(self, name: str, body: bytes, bag: str = "") -> None:
        """Deliver to an input, now and after every reconnection until it is acknowledged."""
        topic = f"devices/{DEVICE}/modules/{MODULE}/inputs/{name}/{bag}"
        number = next(self._numbers)
        self.unacknowledged[number] = (topic, body)
        self._loop.call_soon_threadsafe(self._hub.deliver, number)

    def output(self) -> Output:
        return self._outputs.get(timeout=TIMEOUT_S)

    @property
    def waiting_outputs(self) -> int:
        return self._outputs.qsize()

    def drop_connection(self) -> None:
        self._loop.call_soon_threadsafe(self._hub.drop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT_S)

    def published(self, publish: Publish) -> None:
        prefix = f"devices/{DEVICE}/modules/{MODULE}/messages/events/"
        assert publish.topic.startswith(prefix), publish.topic
        pairs = (part.partition("=") for part in publish.topic.removeprefix(prefix).split("&"))
        self._outputs.put(Output({unquote(k): unquote(v) for k, _, v in pairs}, publish.payload))


class _Hub(MqttHandler):
    def __init__(self, edge: EdgeDouble) -> None:
        self._edge = edge
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def authenticate(self, connect: Connect, info: ConnectionInfo) -> Identity | ConnackCode:
        self._edge.connects.append(connect)
        if self._edge.refuse_tokens:
            return ConnackCode.NOT_AUTHORIZED
        token = (connect.password or b"").decode()
        verify_sas(token, [KEY], audience=f"{HUB}/devices/{DEVICE}/modules/{MODULE}", now=0)
        return Identity(DEVICE, MODULE)

    async def on_subscribe(self, connection: Connection, topic_filter: str) -> bool:
        if topic_filter != f"devices/{DEVICE}/modules/{MODULE}/inputs/#":
            return False
        # One turn later the subscription stands.
        asyncio.get_running_loop().call_later(0.01, self._redeliver, connection)
        return True

    async def on_publish(self, connection: Connection, publish: Publish) -> None:
        self._edge.published(publish)
        while not self._edge.acknowledge_outputs and connection.is_open:
            await asyncio.sleep(0.01)

    async def on_disconnected(self, connection: Connection, reason: DisconnectReason) -> None:
        if self._connection is connection:
            self._connection = None

    def _redeliver(self, connection: Connection) -> None:
        self._connection = connection
        for number in list(self._edge.unacknowledged):
            self.deliver(number)

    def deliver(self, number: int) -> None:
        if self._connection is not None:
            task = asyncio.ensure_future(self._deliver(self._connection, number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, connection: Connection, number: int) -> None:
        topic, body = self._edge.unacknowledged[number]
        try:
            await connection.publish_acked(topic, body)
        except Exception:
            return  # it stays unacknowledged and goes out again on the next connection
        self._edge.unacknowledged.pop(number, None)

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _workload_server(path: Path, certificate: str) -> _UnixServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("/trust-bundle", lambda body: {"certificate": certificate})

        def do_POST(self) -> None:
            self._answer(f"/modules/{MODULE}/genid/638/sign", _sign)

        def _answer(self, expected: str, make: Callable[[bytes], dict[str, str]]) -> None:
            target, _, query = self.path.partition("?")
            known = target == expected and parse_qs(query) == {"api-version": ["2022-08-03"]}
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            content = json.dumps(make(body) if known else {"message": "unknown"}).encode()
            self.send_response(200 if known else 404)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

        def address_string(self) -> str:
            return "unix"

    return _UnixServer(str(path), Handler)


def _sign(body: bytes) -> dict[str, str]:
    asked = json.loads(body)
    assert (asked["keyId"], asked["algo"]) == ("primary", "HMACSHA256")
    digest = hmac.new(base64.b64decode(KEY), base64.b64decode(asked["data"]), hashlib.sha256).digest()
    return {"digest": base64.b64encode(digest).decode()}
