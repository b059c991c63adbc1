"""A proxy before a registry that does one bad thing to one request: real HTTP over real TCP on both sides.

with FaultProxy(registry.address) as proxy:
    proxy.arm(3, Fault.CUT_ANSWER)        # the fourth request from now on
    RegistryClient(proxy.address, …)
    proxy.seen                            # method, path and whether credentials came, of each request

A registry makes absolute addresses from the Host it is asked as, so uploads come through the proxy as well.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

DELAY_S = 0.3
CHUNK_BYTES = 64 << 10
_HOP_HEADERS = frozenset({"connection", "transfer-encoding", "keep-alive"})


class Fault(StrEnum):
    """What may be done to a request."""

    CUT_REQUEST = "cut-request"
    """The registry gets half of the body, the client a reset."""
    CUT_BEFORE_ANSWER = "cut-before-answer"
    """The registry does what was asked; the client never hears of it."""
    CUT_ANSWER = "cut-answer"
    """Half of the answer's body, then a reset; an answer without one is dropped."""
    TRUNCATE = "truncate"
    """Half of the answer's body, with a header that says that this is all."""
    DELAY = "delay"
    """The answer comes later than the client waits."""
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    TOO_MANY = "429"
    REDIRECT = "redirect"
    """Reading is sent to another host, which has the same; writing too, with its body."""
    EXPIRE_TOKEN = "expire-token"
    """The registry gets the request without its credentials, and says so."""


_STATUS = {Fault.SERVER_ERROR: 500, Fault.UNAVAILABLE: 503, Fault.TOO_MANY: 429}


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    has_credentials: bool


class FaultProxy:
    """See the module; `other` is a second address of the same proxy, on another host, for redirects."""

    def __init__(self, upstream: str, *, delay_s: float = DELAY_S) -> None:
        self.upstream = upstream
        self.delay_s = delay_s
        self.seen: list[Seen] = []
        self.seen_elsewhere: list[Seen] = []
        self.authorization: str | None = None
        self.max_body_bytes: int | None = None
        self._armed: tuple[int, Fault] | None = None
        self._count = 0
        self._lock = threading.Lock()
        self._servers = [_Server((host, 0), type("Handler", (_Handler,), {"proxy": self})) for host in _HOSTS]
        self.address, self.other = (
            f"{host}:{each.server_address[1]}" for host, each in zip(_HOSTS, self._servers, strict=True)
        )
        self._threads = [
            threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02})
            for each in self._servers
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(10)

    def arm(self, index: int, fault: Fault) -> None:
        """Do `fault` to the request that comes after `index` others, counted from now; once."""
        with self._lock:
            self._armed, self._count = (index, fault), 0
            self.seen.clear()
            self.seen_elsewhere.clear()

    def next_fault(self) -> Fault | None:
        with self._lock:
            self._count += 1
            if self._armed is not None and self._armed[0] == self._count - 1:
                return self._armed[1]
            return None


_HOSTS = ("127.0.0.1", "127.0.0.2")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    proxy: FaultProxy

    def handle_one(self) -> None:
        is_elsewhere = self.server.server_address[0] == _HOSTS[1]
        seen = Seen(self.command, self.path, "Authorization" in self.headers)
        (self.proxy.seen_elsewhere if is_elsewhere else self.proxy.seen).append(seen)
        fault = None if is_elsewhere else self.proxy.next_fault()
        size = int(self.headers.get("Content-Length", 0))
        if self.proxy.max_body_bytes is not None and size > self.proxy.max_body_bytes:
            # As nginx does it: no word of the registry's, and the body is not read.
            self.close_connection = True
            self._send(413, {"Connection": "close"}, b"<html>413 Request Entity Too Large</html>")
        elif fault in _STATUS:
            self.rfile.read(size)
            headers = {"Retry-After": "1"} if fault is Fault.TOO_MANY else {}
            self._send(_STATUS[fault], headers, b'{"errors":[{"code":"FAULT","message":"made by the test"}]}')
        elif fault is Fault.REDIRECT:
            self.rfile.read(size)
            self._send(307, {"Location": f"http://{self.proxy.other}{self.path}"}, b"")
        else:
            if not is_elsewhere:
                self.proxy.authorization = self.headers.get("Authorization") or self.proxy.authorization
            self._forward(size, fault, is_elsewhere=is_elsewhere)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _forward(self, size: int, fault: Fault | None, *, is_elsewhere: bool) -> None:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=10)
        try:
            self._send_on(upstream, size, fault, self.proxy.authorization if is_elsewhere else None)
            if fault is Fault.CUT_REQUEST:
                self._reset()
                return
            response = upstream.getresponse()
            data = response.read()
            if fault is Fault.DELAY:
                threading.Event().wait(self.proxy.delay_s)
            if fault is Fault.CUT_BEFORE_ANSWER:
                self._reset()
                return
            self._answer(response, data, fault)
        finally:
            upstream.close()

    def _send_on(
        self, upstream: http.client.HTTPConnection, size: int, fault: Fault | None, own: str | None
    ) -> None:
        """Pass the request on; `own` are rights of this host's own, as storage behind a registry has them."""
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        if own is not None and "Authorization" not in self.headers:
            upstream.putheader("Authorization", own)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS and not (
                fault is Fault.EXPIRE_TOKEN and name.lower() == "authorization"
            ):
                upstream.putheader(name, value)
        upstream.endheaders()
        left = size // 2 if fault is Fault.CUT_REQUEST else size
        while left and (chunk := self.rfile.read(min(left, CHUNK_BYTES))):
            upstream.send(chunk)
            left -= len(chunk)

    def _answer(self, response: http.client.HTTPResponse, data: bytes, fault: Fault | None) -> None:
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS}
        if fault is Fault.TRUNCATE and len(data) > 1:
            data = data[: len(data) // 2]
            headers = {
                **{key.lower(): each for key, each in headers.items()},
                "content-length": str(len(data)),
            }
        if fault is Fault.CUT_ANSWER:
            if len(data) > 1:
                self._send(response.status, headers, data[: len(data) // 2])
            self._reset()
            return
        self._send(response.status, headers, data)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in (
            {"content-length": str(len(data))} | {key.lower(): each for key, each in headers.items()}
        ).items():
            if name not in ("date", "server"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection as a crash does: RST instead of FIN."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
