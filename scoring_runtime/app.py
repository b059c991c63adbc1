"""HTTP around the data plane: routes, status codes and headers of Azure ML's scoring server.

`GET /` health, `/live`, `/ready[?verbose=1]`, `POST|GET|OPTIONS /score`, `/swagger.json[?version=]`, `/metrics`.
Every error body is `{"message": …}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access_log import AccessLogMiddleware
from .cors import CorsMiddleware
from .data_plane import DataPlane, Outcome, ScoringReply, ScoringRequest, TimedCall
from .errors import BadInputError, BusyError, ResultError
from .json_codec import encode
from .metrics import Metrics
from .readiness import Phase, Readiness
from .request_ids import IdTooLongError, RequestIds
from .schema import SwaggerDocuments, UnknownSwaggerVersionError
from .settings import DEFAULT_BODY_TIMEOUT_S
from .workers import WorkerPool

if TYPE_CHECKING:
    from .inference_v2 import InferenceV2

JSON = "application/json"

# Eight times what common proxies let through, so that whoever hits it is no client of theirs.
MAX_HEAD_BYTES = 64 * 1024

STATUS = {
    Outcome.OK: 200,
    Outcome.BAD_INPUT: 400,
    Outcome.UNSUPPORTED_CONTENT_TYPE: 415,
    Outcome.RUN_FAILED: 500,
    Outcome.BAD_RESULT: 500,
    Outcome.TIMED_OUT: 500,
}
_RUN_FAILURES = (Outcome.RUN_FAILED, Outcome.BAD_RESULT, Outcome.TIMED_OUT)


class ScoringApp:
    """The routes' functions and what they use."""

    def __init__(
        self,
        plane: DataPlane,
        pool: WorkerPool,
        *,
        readiness: Readiness,
        documents: SwaggerDocuments,
        metrics: Metrics,
        body_limit_bytes: int,
        cors_origins: Sequence[str] = (),
        body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S,
        v2: InferenceV2 | None = None,
        health_headers: Mapping[str, str] | None = None,
        access_log: bool = False,
    ) -> None:
        self._plane = plane
        self._pool = pool
        self._readiness = readiness
        self._documents = documents
        self._metrics = metrics
        self._body_limit_bytes = body_limit_bytes
        self._cors_origins = cors_origins
        self._body_timeout_s = body_timeout_s
        self._v2 = v2
        self._health_headers = health_headers
        self._access_log = access_log

    def asgi(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/", self.healthy, methods=["GET"]),
                Route("/live", self.healthy, methods=["GET"]),
                Route("/ready", self.ready, methods=["GET"]),
                Route("/score", self.score, methods=["GET", "POST", "OPTIONS"]),
                Route("/swagger.json", self.swagger, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                *(self._v2.routes(self.answer) if self._v2 is not None else ()),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _internal_error},
        )
        app.router.redirect_slashes = False  # /score/ is 404 on Azure ML's server
        with_ids = RequestIdMiddleware(app)
        whole = CorsMiddleware(with_ids, self._cors_origins) if self._cors_origins else with_ids
        return AccessLogMiddleware(whole) if self._access_log else whole

    async def healthy(self, request: Request) -> Response:
        return PlainTextResponse("Healthy", headers=self._health_headers)

    async def ready(self, request: Request) -> Response:
        status = 200 if self._readiness.is_ready else 503
        if request.query_params.get("verbose"):
            return _json(status, self._readiness.report())
        if status == 200:
            return PlainTextResponse("Ready")
        return _error(status, f"not ready: the module is {self._readiness.phase.value}")

    async def score(self, request: Request) -> Response:
        if request.method == "OPTIONS" and not self._plane.takes_raw_http:
            return Response(status_code=200, media_type=JSON, headers={"x-ms-run-function-failed": "False"})
        if request.method == "HEAD":
            raise HTTPException(405, headers={"Allow": "GET, OPTIONS, POST"})
        return await self.answer(request, self._plane, _scored, _error)

    async def answer(
        self,
        request: Request,
        plane: DataPlane,
        done: Callable[[ScoringReply, int], Response],
        refuse: Callable[..., Response],
    ) -> Response:
        """Score a request's body; `done(reply, status)` and `refuse(status, message, headers)` say it to the client."""
        if self._readiness.phase is Phase.STARTING:
            return refuse(503, "not ready: the module is starting")
        try:
            body, content_type = await self._input(request)
            ids: RequestIds = request.scope["ids"]
            asked = ScoringRequest(
                body, content_type, ids.request, request.headers, request.method, _target(request)
            )
            reply = await self._run(plane, asked)
        except BodyTooLargeError as error:
            # The rest of the body is not read, so this connection cannot carry another request.
            return refuse(413, str(error), {"connection": "close"})
        except TimeoutError:
            expected = f"the body did not arrive within {self._body_timeout_s:g} s"
            return refuse(408, expected, {"connection": "close"})
        except BadInputError as error:
            return refuse(400, str(error))
        except BusyError as error:
            return refuse(503, str(error), {"retry-after": "1"})
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it: nginx's number for a client that left
        return done(reply, STATUS[reply.outcome])

    async def _run(self, plane: DataPlane, asked: ScoringRequest) -> ScoringReply:
        """The reply, or the timeout's one as soon as `run` has had its time: it may not be stoppable."""
        call = TimedCall(plane, asked)
        future = asyncio.wrap_future(self._pool.submit(call))
        limit_s = plane.timeout_s
        if limit_s is None:
            return await future
        while True:
            done, _ = await asyncio.wait({future}, timeout=call.remaining_s(limit_s))
            if done:
                return future.result()
            if call.remaining_s(limit_s) <= 0:
                return plane.timed_out(asked)

    async def swagger(self, request: Request) -> Response:
        try:
            return _json(200, self._documents.get(request.query_params.get("version")))
        except UnknownSwaggerVersionError as error:
            return _error(404, str(error))

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _input(self, request: Request) -> tuple[bytes, str]:
        """The body and its media type; a GET's query stands for the JSON object it spells."""
        if request.method == "GET" and not self._plane.takes_raw_http:
            return _query_body(request), JSON
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        async with asyncio.timeout(self._body_timeout_s):
            return await _read_body(request, self._body_limit_bytes), media_type


class BodyTooLargeError(ValueError):
    """`str()` is the text for the caller."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body exceeds the limit of {limit_bytes} bytes")


class RequestIdMiddleware:
    """Reads the id headers before any route and writes them on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            ids = RequestIds.read(Request(scope).headers)
        except IdTooLongError as error:
            await _error(431, str(error), {"connection": "close", **error.headers()})(scope, receive, send)
            return
        scope["ids"] = ids

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *ids.headers()]
            await send(message)

        app = _refused_head(scope) or self._app
        await app(scope, receive, send_with_ids)


def _refused_head(scope: Scope) -> Response | None:
    """The answer to a head that no route should see."""
    # Each name and value stands for its line of the head: colon, space, CR and LF are the four bytes.
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEAD_BYTES:
        return _error(431, f"the head exceeds {MAX_HEAD_BYTES} bytes", {"connection": "close"})
    hosts = sum(name == b"host" for name, _ in scope["headers"])
    if scope["http_version"] == "1.1" and hosts != 1:  # RFC 9112 §3.2
        return _error(400, f"expected one Host header in an HTTP/1.1 request, found {hosts or 'none'}")
    return None


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, never more than the limit in memory.

    Raises:
        BodyTooLargeError: by its declared length before a byte is read, or while it arrives in chunks.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _query_body(request: Request) -> bytes:
    """The query as the body it stands for.

    Raises:
        BadInputError: its values are nested too deeply.
    """
    try:
        return encode(_query_object(request))
    except ResultError:
        raise BadInputError("expected query values of JSON or text, found lists nested too deeply") from None


def _query_object(request: Request) -> dict[str, Any]:
    """`?a=1&b=[1,2]&c=x&c=y` → {"a": 1, "b": [1, 2], "c": ["x", "y"]}: each value as JSON, else as text."""
    values: dict[str, list[Any]] = {}
    for name, text in request.query_params.multi_items():
        values.setdefault(name, []).append(_json_or_text(text))
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _scored(reply: ScoringReply, status: int) -> Response:
    headers = score_headers(reply)
    answer = reply.rendered
    if answer is None:
        return Response(reply.body, status, dict(headers), reply.content_type)
    response = (
        Response(answer.body, answer.status)
        if answer.stream is None
        else StreamingResponse(iterate_in_threadpool(answer.stream), answer.status)
    )
    # One by one: a script may send the same header more than once.
    given = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers]
    response.raw_headers += given + [(name.encode(), value.encode()) for name, value in headers]
    return response


def score_headers(reply: ScoringReply) -> list[tuple[str, str]]:
    """What every answer of `/score` says beside its ids, its type and its length."""
    failed = reply.outcome in _RUN_FAILURES
    headers = [("x-ms-run-function-failed", str(failed))]
    if reply.run_s is not None:
        headers.append(("x-ms-run-fn-exec-ms", f"{reply.run_s * 1000:.3f}"))
    return headers


def _target(request: Request) -> str:
    """Path and query as they were sent."""
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


def _json(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(document), status, {"x-ms-run-function-failed": "False", **(headers or {})}, JSON)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, {"message": message}, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, method not allowed) in the contract's form."""
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, _refused_route(request, error), error.headers)


def _refused_route(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is no route '{request.url.path[:100]}'; expected one of {', '.join(_paths(request))}"
    if error.status_code == 405:
        allowed = sorted({*(error.headers or {}).get("Allow", "").split(", ")} - {"HEAD"})
        return (
            f"{request.method[:20]} is no method of '{request.url.path[:100]}'; expected {', '.join(allowed)}"
        )
    return str(error.detail)


def _paths(request: Request) -> Iterable[str]:
    return dict.fromkeys(route.path for route in request.app.routes if isinstance(route, Route))


async def _internal_error(request: Request, error: Exception) -> Response:
    """What nothing above expected; Starlette raises it again behind this answer, and uvicorn logs it."""
    return _error(500, "An unexpected error occurred. The module's log has the reason.")
