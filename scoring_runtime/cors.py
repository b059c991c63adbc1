"""Cross-origin requests (AML_CORS_ORIGINS), as Azure ML's server answers them with flask-cors.

1. Off unless origins are given; then an allowed origin is named on every answer, with `Vary: Origin`.
2. A preflight (OPTIONS with `Access-Control-Request-Method`) is answered here, before the script: GET and POST, and the
   headers that were asked for.
3. Another origin's request is served without these headers: the browser is who refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY = "*"
METHODS = b"GET, POST"
Pairs = list[tuple[bytes, bytes]]


class CorsMiddleware:
    """Around the whole app, so that errors carry the headers too and a page can read them."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._any = ANY in origins
        self._origins = frozenset(origin.encode("latin-1").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = headers.get(b"origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        more = self._allow(origin)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers")
            await _preflight(send, [*more, *_methods(more, asked)])
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, send_with_origin)

    def _allow(self, origin: bytes) -> Pairs:
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        if origin.lower() not in self._origins:
            return [(b"vary", b"Origin")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]


def _methods(allowed: Pairs, asked: bytes | None) -> Pairs:
    if not any(name == b"access-control-allow-origin" for name, _ in allowed):
        return []
    given = [(b"access-control-allow-headers", asked)] if asked else []
    return [(b"access-control-allow-methods", METHODS), *given]


async def _preflight(send: Send, headers: Pairs) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})
