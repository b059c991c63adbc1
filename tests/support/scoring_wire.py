"""The HTTP protocol of the scoring runtime fed byte by byte, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from scoring_asgi import FunctionScorer

from scoring_runtime.app import ScoringApp
from scoring_runtime.data_plane import DataPlane
from scoring_runtime.fast_path import FastScore
from scoring_runtime.metrics import Metrics
from scoring_runtime.readiness import Phase, Readiness
from scoring_runtime.schema import Service, SwaggerDocuments
from scoring_runtime.server import ListenerState, ScoringProtocol
from scoring_runtime.workers import WorkerPool

BODY_LIMIT_BYTES = 4000
_SETTLE_S = 5.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


class MemoryTransport(asyncio.Transport):
    """Keeps what is written; `paused` and `closed` as the protocol asked."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.paused = False
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:  # as a socket's transport does
            self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Wire:
    """One scorer behind one protocol class; each `exchange` is a connection of its own."""

    def __init__(self, scorer: Any = None, *, fast: bool = True) -> None:
        self.metrics = Metrics("double:1")
        self.scorer = scorer or FunctionScorer(lambda value: value)
        self.plane = DataPlane(self.scorer, self.metrics)
        self.pool = WorkerPool(1)
        app = ScoringApp(
            self.plane,
            self.pool,
            readiness=Readiness("double:1", Phase.READY),
            documents=SwaggerDocuments(self.scorer.signature, Service(), None),
            metrics=self.metrics,
            body_limit_bytes=BODY_LIMIT_BYTES,
        )
        self.fast = (
            FastScore.over(
                self.scorer, self.plane, self.pool, self.metrics, body_limit_bytes=BODY_LIMIT_BYTES
            )
            if fast
            else None
        )
        self._config = uvicorn.Config(
            app.asgi(), ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False
        )
        self._config.load()

    def exchange(
        self, chunks: Sequence[bytes], answers: int | None = None, *, eof: bool = False, patient: bool = False
    ) -> list[Answer]:
        """Send the chunks; the answers once nothing more happens.

        Args:
            chunks: each is received by itself; with `patient` only after what was asked before is answered.
            answers: how many there must be.
            eof: the client says at the end that it sends no more.
        """
        return asyncio.run(self._exchange(chunks, answers, eof, patient))

    async def _exchange(
        self, chunks: Sequence[bytes], answers: int | None, eof: bool, patient: bool
    ) -> list[Answer]:
        transport, protocol = self.connect()
        for chunk in chunks:
            await settle(lambda: not transport.paused or transport.closed)
            if transport.closed:
                break
            protocol.data_received(chunk)
            await asyncio.sleep(0)
            if patient:
                await settle(lambda: self._is_quiet(protocol) or transport.closed)
        if eof and not transport.closed and not protocol.eof_received():
            transport.close()
        await settle(lambda: self._is_quiet(protocol) or transport.closed)
        found = parse_answers(transport.written)
        assert answers is None or len(found) == answers, transport.written
        protocol.connection_lost(None)
        return found

    def connect(self, state: ListenerState | None = None) -> tuple[MemoryTransport, ScoringProtocol]:
        transport = MemoryTransport()
        protocol = ScoringProtocol(
            self._config, state or ListenerState(), asyncio.get_running_loop(), self.fast
        )
        protocol.connection_made(transport)
        return transport, protocol

    @staticmethod
    def _is_quiet(protocol: ScoringProtocol) -> bool:
        cycle = protocol.cycle
        waits_for_body = cycle is not None and cycle.more_body
        return not protocol._pending and (cycle is None or cycle.response_complete or waits_for_body)


async def settle(condition: Any) -> None:
    """Until the condition held for a few turns of the loop."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLE_S
    held = 0
    while held < 3:
        assert loop.time() < deadline, "it did not settle"
        await asyncio.sleep(0 if held else 0.0005)
        held = held + 1 if condition() else 0


def parse_answers(stream: bytes) -> list[Answer]:
    found = []
    while stream:
        head, end, rest = stream.partition(b"\r\n\r\n")
        assert end, stream
        status_line, *lines = head.decode("latin-1").split("\r\n")
        assert status_line.startswith("HTTP/1.1 "), status_line
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))  # "100 Continue" has none
        assert len(rest) >= length
        status = int(status_line.split(" ")[1])
        if status != 100:
            found.append(Answer(status, headers, rest[:length]))
        stream = rest[length:]
    return found


def post(body: bytes, *lines: bytes, target: bytes = b"/score", length: int | None = None) -> bytes:
    """A plain request; `lines` are more header lines."""
    head = [
        b"POST %b HTTP/1.1" % target,
        b"Host: x",
        b"Content-Type: application/json",
        *lines,
        b"Content-Length: %d" % (len(body) if length is None else length),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body
