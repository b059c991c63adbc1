"""Sockets, signals and the end: who is served when.

1. The health socket is served as soon as `init()` has returned; the public one at once, or, with EDGEWRIGHT_HOLD=1,
   from SIGUSR1 on. Edge messages follow the public socket, since they are traffic too.
2. SIGTERM: the public socket is closed at once, never shut down: it is shared with the instance that takes over, and
   what waits in its accept queue belongs to whoever accepts it. What was accepted here is answered here.
3. A connection that was accepted but has not spoken yet may have its request on the way, so it gets LINGER_S; so
   does an idle kept-alive one, and whatever comes on it is answered with `Connection: close`.
4. After DRAIN_S the rest is cut and the process ends with 0.

uvicorn gives the HTTP protocol; its own `Server` is not used, because it closes such silent connections at once and
polls for the stop every 100 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from email.utils import formatdate

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .data_plane import ScoringReply
from .fast_path import CLOSE, Call, FastScore, answer_bytes, ok_bytes, refusal_bytes
from .head_memo import END, MAX_HEAD_BYTES, START, Head
from .readiness import Phase, Readiness
from .signals import EarlySignals
from .traffic import Traffic
from .wire_refusal import wire_refusal

log = logging.getLogger("scoring_runtime")

DRAIN_S = 10.0
ABANDON_S = 0.5
LINGER_S = 1.0
_POLL_S = 0.02
_BACKLOG = 2048
# Longer than the idle time after which common HTTP clients and proxies let go of a pooled connection (60 s), so
# that they are the ones who close it.
_KEEP_ALIVE_S = 75

# A head that is not there whole, or a client that does not read its answers, after this long ends its connection.
_QUIET_S = 60
# A head or trailers beyond this end their connection: httptools would gather them without end. The first read of a head
# is not counted, so the application's own limit (the same) is what most see.
_HEAD_LIMIT_BYTES = 64 * 1024
# Bytes of following requests kept while one is computed; more stays in the socket.
_BACKLOG_BYTES = 64 * 1024


class ListenerState(ServerState):
    """uvicorn's state of one listener, and ours.

    Attributes:
        draining: SIGTERM was received.
        second: counts the ticks; idle connections are measured by it instead of by a timer for each request.
        date: the Date header's line, and what else every answer says.
    """

    draining = False
    second = 0
    date = b""


class ScoringProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a drain that loses no request, and with `POST /score` answered without ASGI.

    The general parser (httptools, then ASGI) sees everything but the plain form that `head_memo` knows. A request of
    that form is taken only between two messages of the general parser, when nothing waits for an answer and its head
    is there whole. While it is computed, what follows it waits in `_backlog`: answers keep their order.
    """

    server_state: ListenerState
    _in_message = False  # the general parser is between the first and the last byte of a message
    _reading_head = False  # and still in its head
    _received = 0  # bytes given to the general parser
    _head_from = 0  # of them, those before the read after which nothing but head or trailers came
    _general_only = False  # another protocol was asked for on this connection
    _pending = False  # a fast request is being computed, or its answer waits for the client to read
    _stalled = False  # the latter
    _in_read = False  # `_read` is on the stack and goes on by itself
    _more = False  # bytes follow the request being computed
    _ended = False  # the client will send no more
    _asked: tuple[Head, str | None] | None = None  # a fast request whose body is arriving
    _missing = 0
    _backlog = b""
    _backlog_at = 0
    _used = 0  # the second in which the last request began

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ListenerState,
        loop: asyncio.AbstractEventLoop,
        fast: FastScore | None,
    ) -> None:
        super().__init__(config, server_state, {}, loop)
        self._fast = fast
        self._pieces: list[bytes | memoryview] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._used = self.server_state.second
        if self.server_state.draining:
            self.shutdown()

    # ---- in ----

    def data_received(self, data: bytes) -> None:
        if self._pending:
            self._backlog = self._backlog[self._backlog_at :] + data
            self._backlog_at = 0
            self._more = True
            if len(self._backlog) > _BACKLOG_BYTES:
                self.flow.pause_reading()
        elif self._missing:
            self._continue_body(data)
        elif (
            self._fast is None
            or self._in_message
            or self._general_only
            or not data.startswith(START)
            or not (self.cycle is None or self.cycle.response_complete)
        ):
            self._parse(data)
        else:
            self._read(data, 0, self._fast)

    def _read(self, data: bytes, at: int, fast: FastScore) -> None:
        """Requests from `at` on, until one is incomplete, is being computed, or is not of the plain form."""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._used = self.server_state.second
        while at < len(data):
            if self.flow.write_paused:
                self._pending = self._stalled = True
                self._keep(data, at)
                return
            end = data.find(END, at, at + MAX_HEAD_BYTES) + len(END)
            found = fast.memo.read(data[at:end]) if end >= len(END) else None
            if found is None:
                self._parse(data[at:])
                return
            head, given_id = found
            following = end + head.length
            if following > len(data):
                self._asked, self._missing = found, following - len(data)
                self._pieces.append(memoryview(data)[end:])
                break
            at = following
            self._more = at < len(data)
            self._pending = self._in_read = True
            # Octets are read where they lie; everything else is searched and parsed as bytes.
            body = memoryview(data)[end:following] if head.has_octets else data[end:following]
            fast.accept(Call(self, head, given_id, body))
            self._in_read = False
            if self._pending:
                self._keep(data, at)
                return
            if self.transport.is_closing():
                return
        if self._ended:
            self.transport.close()

    def _keep(self, data: bytes, at: int) -> None:
        if at < len(data):
            self._backlog, self._backlog_at = data, at
            if len(data) - at > _BACKLOG_BYTES:
                self.flow.pause_reading()

    def _continue_body(self, data: bytes) -> None:
        following = min(len(data), self._missing)
        self._missing -= following
        self._pieces.append(data[:following])
        if self._missing:
            return
        body = b"".join(self._pieces)
        self._pieces.clear()
        assert self._asked is not None and self._fast is not None
        (head, given_id), self._asked = self._asked, None
        self._pending = True
        self._more = following < len(data)
        self._keep(data, following)
        self._fast.accept(Call(self, head, given_id, body))

    def eof_received(self) -> bool:
        """True keeps the connection of a client that only waits for its answer now."""
        self._ended = True
        return self._pending

    # ---- out ----

    @property
    def is_only(self) -> bool:
        return len(self.connections) == 1

    def answer(self, call: Call, reply: ScoringReply) -> None:
        if not self.transport.is_closing():
            close = self.server_state.draining and not self._more
            self.transport.write(answer_bytes(call, reply, self.server_state.date, close=close))
            self._answered(close)

    def answer_ok(self, call: Call, start: bytes, body: bytes) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        state = self.server_state
        if state.draining or self._backlog or self._ended or self._in_read:
            close = state.draining and not self._more
            date = state.date + CLOSE if close else state.date
            transport.write(ok_bytes(call, start, body, date))
            self._answered(close)
        else:
            transport.write(ok_bytes(call, start, body, state.date))
            self._pending = False

    def refuse(self, call: Call, status: int, message: str) -> None:
        if not self.transport.is_closing():
            close = status == 408 or (self.server_state.draining and not self._more)
            self.transport.write(refusal_bytes(call, status, message, self.server_state.date, close=close))
            self._answered(close)

    def _answered(self, close: bool) -> None:
        self._pending = False
        if close:
            self.transport.close()
            return
        if self.server_state.draining:  # what follows may be no whole request
            self.loop.call_later(LINGER_S, self._close_if_idle)
        if not self._in_read and (self._backlog or self._ended):
            self._resume()

    def _resume(self) -> None:
        data, at = self._backlog, self._backlog_at
        self._backlog, self._backlog_at = b"", 0
        self.flow.resume_reading()
        if self._fast is not None and (data or self._ended):
            self._read(data, at, self._fast)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled = self._pending = False
            if not self.transport.is_closing():
                self._resume()

    # ---- the general parser ----

    def _parse(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._in_message and self._received - self._head_from > _HEAD_LIMIT_BYTES:
            if self._reading_head and (self.cycle is None or self.cycle.response_complete):
                self._refuse_wire(431, f"the head exceeds {_HEAD_LIMIT_BYTES} bytes")
            else:
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's error is handled: its text says what is wrong."""
        is_body = self._in_message and not self._reading_head
        if self.cycle is not None and not self.cycle.response_complete and not is_body:
            # The requests before it are being answered; the last of their answers ends the connection.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif self.pipeline:
            self.transport.abort()  # an answer now would be taken for that of an earlier request
        else:
            self._refuse_wire(400, f"expected an HTTP/1.1 request, found: {sys.exception() or msg}")

    def _refuse_wire(self, status: int, message: str) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of an answer there is no place for another
            return
        headers = self.headers if self._in_message else []
        self.transport.write(wire_refusal(status, message, headers, self.server_state.date))
        self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._head_from = self._received
        super().on_body(body)

    def on_message_begin(self) -> None:
        self._head_from = self._received
        self._in_message = self._reading_head = True
        self._used = self.server_state.second
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._general_only = self._general_only or self.parser.should_upgrade()
        super().on_headers_complete()
        if self.server_state.draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    # ---- the end ----

    def shutdown(self) -> None:
        if self._is_idle():
            self.loop.call_later(LINGER_S, self._close_if_idle)
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def tick(self) -> None:
        """Once a second: end what has been quiet for too long."""
        quiet_s = self.server_state.second - self._used
        if self._missing:
            self._check_body(quiet_s)
        elif (self._stalled or self._reading_head) and quiet_s > _QUIET_S:
            self.transport.abort()
        elif self._is_idle() and self.timeout_keep_alive_task is None and quiet_s > _KEEP_ALIVE_S:
            self.transport.close()

    def _check_body(self, waiting_s: float) -> None:
        assert self._asked is not None and self._fast is not None
        if waiting_s > self._fast.body_timeout_s:
            (head, given_id), self._asked = self._asked, None
            self._missing = 0
            self._pieces.clear()
            message = f"the body did not arrive within {self._fast.body_timeout_s:g} s"
            self.refuse(Call(self, head, given_id, b""), 408, message)

    def _close_if_idle(self) -> None:
        if not self._is_idle() or self._reading_head:
            return
        # On a busy machine the request may have come while nobody looked; closing now would reset the connection.
        if select.select([self.transport.get_extra_info("socket")], [], [], 0)[0]:
            self.loop.call_later(_POLL_S, self._close_if_idle)
        else:
            self.transport.close()

    def _is_idle(self) -> bool:
        return (
            not self._pending and not self._missing and (self.cycle is None or self.cycle.response_complete)
        )


class Listener:
    """One listening socket and the connections accepted from it."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        fast: FastScore | None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._socket = sock
        self._headers = headers
        self._fast = fast
        self._config = uvicorn.Config(
            app,
            http=ScoringProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._config.load()
        self._state = ListenerState()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        self.tick()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=self._socket, backlog=_BACKLOG
        )

    def tick(self) -> None:
        """The Date header, made once a second instead of once a response; and what was quiet for too long ends."""
        date = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", date), *self._headers]
        self._state.date = b"".join(b"%b: %b\r\n" % pair for pair in self._state.default_headers)
        self._state.second += 1
        for connection in list(self._state.connections):
            if isinstance(connection, ScoringProtocol):
                connection.tick()

    def stop_accepting(self) -> None:
        """Close our file descriptor of the listening socket; other processes' ones go on listening."""
        self._state.draining = True
        if self._server is None:
            self._socket.close()
        else:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()

    async def drained(self, deadline: float) -> bool:
        """Wait until every accepted connection is answered and closed; False when the deadline came first."""
        # A connection accepted in the very turn of the stop shows up one turn later.
        await asyncio.sleep(_POLL_S)
        while self._state.connections:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def cut(self) -> None:
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _protocol(self) -> asyncio.Protocol:
        return ScoringProtocol(self._config, self._state, asyncio.get_running_loop(), self._fast)


class ModuleServer:
    """Both listeners of one module from the end of `init()` to the end of the process."""

    def __init__(
        self,
        app: ASGIApp,
        readiness: Readiness,
        *,
        public: socket.socket,
        health: socket.socket | None,
        hold: bool,
        early: EarlySignals,
        traffic: Traffic,
        fast: FastScore | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._readiness = readiness
        self._public = Listener(app, public, fast, headers)
        self._health = Listener(app, health, fast, headers) if health is not None else None
        self._hold = hold
        self._early = early
        self._traffic = traffic
        self._drain_s = DRAIN_S
        self._stop = asyncio.Event()
        self._activate = asyncio.Event()

    async def serve(self) -> bool:
        """Serve until SIGTERM or SIGINT, then drain. False when something had to be cut."""
        loop = self._loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)
        loop.add_signal_handler(signal.SIGUSR1, self._activate.set)
        self._readiness.phase = Phase.READY
        if self._health is not None:
            await self._health.start()
            log.info("health on %s", self._health.address)
        if not self._hold or self._early.activated:
            self._activate.set()
        async with self._ticking():
            await self._first_of(self._activate, self._stop)
            if not self._stop.is_set():
                await self._start_public()
                await self._stop.wait()
            return await self._drain()

    def abandon(self) -> None:
        """End soon, with time for answers that are there: the process is to be replaced. From any thread."""
        self._drain_s = ABANDON_S
        self._loop.call_soon_threadsafe(self._on_stop)

    async def _start_public(self) -> None:
        await self._public.start()
        self._readiness.serving_public = True
        log.info("scoring on %s/score", self._public.address)
        self._traffic.start()

    def _on_stop(self) -> None:
        """Runs in the event loop as soon as the signal is seen: nothing is accepted after it."""
        if self._stop.is_set():
            return
        self._readiness.phase = Phase.STOPPING
        self._readiness.serving_public = False
        self._public.stop_accepting()
        self._stop.set()

    async def _drain(self) -> bool:
        deadline = time.monotonic() + self._drain_s
        stopping = asyncio.get_running_loop().run_in_executor(None, self._traffic.stop, deadline)
        clean = await self._public.drained(deadline)
        await stopping
        if self._health is not None:  # last, so that whoever asks is told "stopping" rather than nothing
            self._health.stop_accepting()
            self._health.cut()
        if not clean:
            log.warning("requests still unanswered after %g s were cut", self._drain_s)
            self._public.cut()
        log.info("stopped")
        return clean

    @staticmethod
    async def _first_of(*events: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    @contextlib.asynccontextmanager
    async def _ticking(self) -> AsyncIterator[None]:
        async def tick() -> None:
            while True:
                await asyncio.sleep(1)
                for listener in filter(None, (self._public, self._health)):
                    listener.tick()

        task = asyncio.ensure_future(tick())
        try:
            yield
        finally:
            task.cancel()
