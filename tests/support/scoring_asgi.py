"""Requests to the scoring app in process, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from scoring_server import Reply

from scoring_runtime.app import ScoringApp
from scoring_runtime.data_plane import DataPlane, Scorer, ScoringRequest
from scoring_runtime.json_codec import decode, encode
from scoring_runtime.metrics import Metrics
from scoring_runtime.readiness import Phase, Readiness
from scoring_runtime.run_timer import RunTimer
from scoring_runtime.schema import Service, Signature, SwaggerDocuments
from scoring_runtime.workers import WorkerPool


class FunctionScorer:
    """A scorer made of one function of the parsed JSON body."""

    signature = Signature()

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self._function = run

    def parse(self, request: ScoringRequest) -> Any:
        return decode(request.body)

    def run(self, arguments: Any) -> Any:
        return self._function(arguments)

    def render(self, result: Any) -> bytes:
        return encode(result)


class AppUnderTest:
    """The app around one function, with its collaborators to look at."""

    def __init__(
        self,
        run: Callable[[Any], Any] = lambda value: value,
        *,
        scorer: Scorer | None = None,
        body_limit_bytes: int = 1000,
        timeout_ms: int = 60_000,
        **options: Any,
    ) -> None:
        self.metrics = Metrics("double:1")
        self.readiness = Readiness("double:1", Phase.READY)
        scorer = scorer or FunctionScorer(run)
        self.sent_headers: list[tuple[str, str]] = []
        self._app = ScoringApp(
            DataPlane(scorer, self.metrics, RunTimer(timeout_ms)),
            WorkerPool(1),
            readiness=self.readiness,
            documents=SwaggerDocuments(scorer.signature, Service(), None),
            metrics=self.metrics,
            body_limit_bytes=body_limit_bytes,
            **options,
        ).asgi()

    def call(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        chunk: int = 1 << 20,
        pause_s: float = 0.0,
    ) -> Reply:
        """`pause_s` passes before every piece of `chunk` bytes."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": quote(query, safe="=&%+").encode(),
            "headers": [
                (k.lower().encode(), v.encode()) for k, v in {"host": "x", **(headers or {})}.items()
            ],
        }
        return asyncio.run(
            self._call(scope, [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""], pause_s)
        )

    async def _call(self, scope: dict[str, Any], chunks: list[bytes], pause_s: float) -> Reply:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            if not chunks:
                await asyncio.Event().wait()  # the client stays, and sends nothing more
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        self.sent_headers = [
            (name.decode().lower(), value.decode("latin-1")) for name, value in sent[0]["headers"]
        ]
        return Reply(
            sent[0]["status"],
            dict(self.sent_headers),
            b"".join(message.get("body", b"") for message in sent[1:]),
        )
