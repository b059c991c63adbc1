"""A line for each scored request, as Azure ML's server writes it: `POST /score 200 0.235ms 10`.

1. On by EDGEWRIGHT_ACCESS_LOG: such a line costs about as much as a whole small request, and an edge device's storage wears.
2. Method, path and query as sent, status, the time to the answer's last byte, the body's bytes (N/A when streamed).
3. Health, readiness and metrics are not written: whoever probes would fill the log.
4. In JSON logs the parts are keys of their own beside the message: method, path, status, ms, bytes, requestId.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("scoring_runtime.access")

_UNWRITTEN = frozenset(("/", "/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"))
# A longer target is cut: a caller chooses its length.
_LONGEST_TARGET = 500


class AccessLogMiddleware:
    """Around the whole app, so that refusals are written too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNWRITTEN:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        start: Message = {}

        async def watch(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                start.update(message)
            elif not message.get("more_body"):
                _write(scope, start, (time.perf_counter() - started) * 1000)

        await self._app(scope, receive, watch)


def _write(scope: Scope, start: Message, duration_ms: float) -> None:
    headers = {name.lower(): value.decode("latin-1") for name, value in start["headers"]}
    query: bytes = scope["query_string"]
    target = ascii(scope["path"] + ("?" + query.decode("latin-1") if query else ""))[1:-1][:_LONGEST_TARGET]
    parts: dict[str, Any] = {
        "method": scope["method"],
        "path": target,
        "status": start["status"],
        "ms": round(duration_ms, 3),
        "bytes": headers.get(b"content-length", "N/A"),
    }
    line = "{method} {path} {status} {ms:.3f}ms {bytes}".format(**parts)
    log.info("%s", line, extra={"parts": {**parts, "requestId": headers.get(b"x-request-id", "")}})
