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
import signal
import socket
import time
from collections.abc import AsyncIterator
from email.utils import formatdate

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .readiness import Phase, Readiness
from .signals import EarlySignals
from .traffic import Traffic

log = logging.getLogger("scoring_runtime")

DRAIN_S = 10.0
LINGER_S = 1.0
_POLL_S = 0.02
_BACKLOG = 2048
# Longer than the idle time after which common HTTP clients and proxies let go of a pooled connection (60 s), so
# that they are the ones who close it.
_KEEP_ALIVE_S = 75


class DrainingState(ServerState):
    """uvicorn's state of one listener, and whether it is draining."""

    draining = False


class ScoringProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a drain that loses no request."""

    server_state: DrainingState
    _reading_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.server_state.draining:
            self.shutdown()

    def on_message_begin(self) -> None:
        self._reading_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading_head = False
        super().on_headers_complete()
        if self.server_state.draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if self._is_idle():
            self.loop.call_later(LINGER_S, self._close_if_idle)
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._is_idle() and not self._reading_head:
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class Listener:
    """One listening socket and the connections accepted from it."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self._socket = sock
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
        self._state = DrainingState()
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
        """The Date header, made once a second instead of once a response."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

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
        return ScoringProtocol(self._config, self._state, {}, asyncio.get_running_loop())


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
    ) -> None:
        self._readiness = readiness
        self._public = Listener(app, public)
        self._health = Listener(app, health) if health is not None else None
        self._hold = hold
        self._early = early
        self._traffic = traffic
        self._stop = asyncio.Event()
        self._activate = asyncio.Event()

    async def serve(self) -> bool:
        """Serve until SIGTERM or SIGINT, then drain. False when something had to be cut."""
        loop = asyncio.get_running_loop()
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
        deadline = time.monotonic() + DRAIN_S
        stopping = asyncio.get_running_loop().run_in_executor(None, self._traffic.stop, deadline)
        clean = await self._public.drained(deadline)
        await stopping
        if self._health is not None:  # last, so that whoever asks is told "stopping" rather than nothing
            self._health.stop_accepting()
            self._health.cut()
        if not clean:
            log.warning("requests still unanswered after %g s were cut", DRAIN_S)
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
