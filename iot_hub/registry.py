"""The embedded image registry: the OCI distribution specification 1.1, push and pull, over one folder.

    app = make_registry(data_dir / "registry", auth)     # a Starlette app; `auth` says who may do what

Served: `/v2/`, blobs (HEAD, GET with Range; upload by POST, PATCH, PUT; mount), manifests by tag and digest,
`tags/list`. Absent: deletion, the catalog, referrers. Every error has the specification's JSON shape.

Access: a request without credentials is answered 401 with a Bearer challenge; `GET /token` takes a user name and
password (Basic) and gives a token of 300 s for the scopes asked for, as far as the user has them. Basic is taken
directly, too. Ten wrong passwords a minute for one user from one address, then 429.

Bounds: 16 GiB a blob, 4 MiB a manifest, 256 uploads at a time, an hour without a byte ends an upload, 60 s without
a byte end a request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_containers.errors import DigestMismatchError, DiskFullError, ImageFormatError
from edge_containers.image_model import MAX_DOCUMENT_BYTES
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest

from .registry_store import MissingBlobError, RegistryStore, Upload, is_repository_name, is_tag
from .registry_tokens import (
    Access,
    LoginBrake,
    RegistryAuth,
    RegistryGrant,
    TokenSigner,
    parse_basic,
    parse_scopes,
)
from .registry_tokens import Scope as TokenScope

__all__ = ["RegistryAuth", "RegistryGrant", "make_registry"]

log = logging.getLogger(__name__)

MAX_BLOB_BYTES = 16 << 30
MAX_UPLOADS = 256
UPLOAD_IDLE_S = 3600.0
READ_TIMEOUT_S = 60.0
# Disk writes happen in threads; a megabyte at a time keeps the hops few.
WRITE_BYTES = 1 << 20
TAGS_PAGE = 1000
SERVICE = "edgewright-registry"

# Error codes of the specification (and of Docker's registry, for the last three) with their status.
_STATUS = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 400,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 413,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
    "RANGE_INVALID": 416,
    "DISK_FULL": 507,
}


class RegistryProblem(Exception):
    """An answer that is an error; `code` is one of the specification's."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class ClientGoneProblem(RegistryProblem):
    """The body ended early or stalled; what came of it may be continued."""


def make_registry(
    store_root: Path,
    auth: RegistryAuth,
    *,
    max_blob_bytes: int = MAX_BLOB_BYTES,
    wall_clock: Callable[[], float] = time.time,
) -> Starlette:
    """The registry as an ASGI app; the folder is made when absent and belongs to this process alone.

    Raises:
        OSError, ContainerError: the folder cannot be written or holds something else.
    """
    store = RegistryStore(store_root)
    gate = _Gate(auth, TokenSigner.open(store_root / "token-key"), wall_clock)
    uploads = _Uploads(store, max_blob_bytes)
    blobs = _Blobs(store, gate, uploads)
    manifests = _Manifests(store, gate)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            uploads.abort_all()

    upload = "/v2/{name:path}/blobs/uploads"
    app = Starlette(
        routes=[
            Route("/token", gate.token, methods=["GET"]),
            Route("/v2/", gate.ping, methods=["GET"]),
            Route("/v2", gate.ping, methods=["GET"]),
            Route(upload + "/", blobs.start, methods=["POST"]),
            Route(upload + "/{upload_id}", blobs.status, methods=["GET"]),
            Route(upload + "/{upload_id}", blobs.append, methods=["PATCH"]),
            Route(upload + "/{upload_id}", blobs.finish, methods=["PUT"]),
            Route(upload + "/{upload_id}", blobs.cancel, methods=["DELETE"]),
            Route("/v2/{name:path}/blobs/{digest}", blobs.read, methods=["GET"]),
            Route("/v2/{name:path}/manifests/{reference}", manifests.read, methods=["GET"]),
            Route("/v2/{name:path}/manifests/{reference}", manifests.write, methods=["PUT"]),
            Route("/v2/{name:path}/tags/list", manifests.tags, methods=["GET"]),
        ],
        exception_handlers={
            RegistryProblem: _answer_problem,
            EdgewrightError: _answer_failure,
            HTTPException: _answer_http,
        },
        lifespan=lifespan,
    )
    app.add_middleware(_VersionHeader)
    return app


class _VersionHeader:
    """Docker's clients ask for the header before they believe that this is a registry."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"docker-distribution-api-version", b"registry/2.0"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_version if scope["type"] == "http" else send)


# Errors.


def _errors(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"errors": [{"code": code, "message": message, "detail": None}]}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


async def _answer_problem(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, RegistryProblem)
    return _errors(_STATUS[problem.code], problem.code, problem.message, problem.headers)


_CODE_OF_FAILURE: dict[type[EdgewrightError], str] = {
    DigestMismatchError: "DIGEST_INVALID",
    MissingBlobError: "MANIFEST_BLOB_UNKNOWN",
    ImageFormatError: "MANIFEST_INVALID",
    DiskFullError: "DISK_FULL",
}


async def _answer_failure(_request: Request, failure: Exception) -> Response:
    assert isinstance(failure, EdgewrightError)
    code = _CODE_OF_FAILURE.get(type(failure))
    if code is None:
        log.error("registry: %s", failure)
        return _errors(500, "UNKNOWN", failure.message)
    return _errors(_STATUS[code], code, failure.message)


async def _answer_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}.get(error.status_code, "UNKNOWN")
    return _errors(error.status_code, code, str(error.detail), error.headers)


# Access.


class _Gate:
    """Decides who a request comes from and whether it may do what it asks."""

    def __init__(self, auth: RegistryAuth, signer: TokenSigner, wall_clock: Callable[[], float]) -> None:
        self._auth = auth
        self._signer = signer
        self._now = wall_clock
        self._brake = LoginBrake()

    def require(self, request: Request, action: str) -> str:
        """The request's repository, when the action on it is allowed.

        Raises:
            RegistryProblem: a wrong name, no credentials, or too few rights.
        """
        repository = str(request.path_params["name"])
        if not is_repository_name(repository):
            raise RegistryProblem(
                "NAME_INVALID", f"repository must be a lower-case path, not {repository[:80]!r}"
            )
        wanted = TokenScope(repository, frozenset({"pull", action}))
        access = self._access(request, wanted)
        if not access.allows(repository, action):
            if access.grant is not None:
                raise RegistryProblem("DENIED", f"{access.subject} may not {action} {repository}")
            # A client may hold a token of another scope: the challenge tells it which one to fetch.
            raise self._challenge(request, wanted, f"the token does not allow to {action} {repository}")
        return repository

    def may_pull(self, request: Request, repository: str) -> bool:
        return self._access(request, None).allows(repository, "pull")

    async def ping(self, request: Request) -> Response:
        self._access(request, None)
        return JSONResponse({})

    async def token(self, request: Request) -> Response:
        """The token endpoint of the distribution specification's Bearer scheme."""
        given = parse_basic(request.headers.get("authorization", ""))
        if given is None:
            raise RegistryProblem(
                "UNAUTHORIZED",
                "user name and password expected",
                {"WWW-Authenticate": f'Basic realm="{SERVICE}"'},
            )
        grant = self._log_in(request, *given)
        if grant is None:
            raise RegistryProblem(
                "UNAUTHORIZED",
                "wrong user name or password",
                {"WWW-Authenticate": f'Basic realm="{SERVICE}"'},
            )
        now = self._now()
        scopes = parse_scopes(request.query_params.getlist("scope"))
        token, lifetime_s = self._signer.issue(grant, scopes, now)
        issued_at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"token": token, "access_token": token, "expires_in": lifetime_s, "issued_at": issued_at}
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    def _access(self, request: Request, wanted: TokenScope | None) -> Access:
        header = request.headers.get("authorization", "")
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() == "bearer":
            access = self._signer.read(credentials.strip(), self._now())
            if access is None:
                raise self._challenge(request, wanted, "the token is not valid or has expired")
            return access
        given = parse_basic(header)
        if given is None:
            raise self._challenge(request, wanted, "authentication is required")
        grant = self._log_in(request, *given)
        if grant is None:
            raise self._challenge(request, wanted, "wrong user name or password")
        return Access(grant.subject, grant=grant)

    def _log_in(self, request: Request, username: str, password: str) -> RegistryGrant | None:
        peer = request.client.host if request.client else ""
        now = self._now()
        if wait_s := self._brake.wait_s(peer, username, now):
            raise RegistryProblem(
                "TOOMANYREQUESTS", "too many wrong passwords; wait a minute", {"Retry-After": str(wait_s)}
            )
        grant = self._auth.check(username, password)
        if grant is None or (grant.expires_at is not None and grant.expires_at <= now):
            self._brake.failed(peer, username, now)
            return None
        self._brake.succeeded(peer, username)
        return grant

    def _challenge(self, request: Request, wanted: TokenScope | None, message: str) -> RegistryProblem:
        realm = f"{request.url.scheme}://{request.headers.get('host', 'localhost')}/token"
        parts = [f'realm="{quote(realm, safe=":/[]")}"', f'service="{SERVICE}"']
        if wanted is not None:
            parts.append(f'scope="{wanted}"')
        return RegistryProblem("UNAUTHORIZED", message, {"WWW-Authenticate": "Bearer " + ",".join(parts)})


# Blobs.


def _digest(text: str | None) -> ImageDigest:
    try:
        digest = ImageDigest.parse(text or "")
    except EdgewrightError as error:
        raise RegistryProblem("DIGEST_INVALID", error.message) from error
    if digest.algorithm != "sha256":
        raise RegistryProblem("DIGEST_INVALID", f"digest must be sha256, not {digest.algorithm}")
    return digest


class _Uploads:
    """Uploads in progress, in this process's memory: after a restart a client begins again."""

    def __init__(self, store: RegistryStore, max_blob_bytes: int) -> None:
        self._store = store
        self._max_blob_bytes = max_blob_bytes
        self._uploads: dict[str, tuple[Upload, asyncio.Lock]] = {}

    def start(self, repository: str) -> Upload:
        for upload, lock in list(self._uploads.values()):
            if not lock.locked() and time.monotonic() - upload.touched_at > UPLOAD_IDLE_S:
                self.drop(upload)
        if len(self._uploads) >= MAX_UPLOADS:
            raise RegistryProblem("TOOMANYREQUESTS", "too many uploads at a time", {"Retry-After": "10"})
        upload = Upload(self._store, repository)
        self._uploads[upload.id] = (upload, asyncio.Lock())
        return upload

    @asynccontextmanager
    async def using(self, repository: str, upload_id: str) -> AsyncIterator[Upload]:
        """The upload, for one request at a time; an error on the way to the disk ends it."""
        upload, lock = self._find(repository, upload_id)
        async with lock:
            self._find(repository, upload_id)  # the request before may have ended it
            yield upload

    def _find(self, repository: str, upload_id: str) -> tuple[Upload, asyncio.Lock]:
        found = self._uploads.get(upload_id)
        if found is None or found[0].repository != repository:
            raise RegistryProblem("BLOB_UPLOAD_UNKNOWN", "no such upload; start again with POST")
        return found

    async def receive(self, upload: Upload, request: Request, *, resumable: bool = False) -> None:
        """Append the request's body.

        Raises:
            RegistryProblem, DiskFullError: and the upload is gone, unless it is resumable and the client went away.
        """
        buffer = bytearray()
        try:
            async for chunk in _body(request):
                buffer += chunk
                if upload.size + len(buffer) > self._max_blob_bytes:
                    raise RegistryProblem(
                        "SIZE_INVALID", f"a blob must be at most {self._max_blob_bytes} bytes"
                    )
                if len(buffer) >= WRITE_BYTES:
                    await run_in_threadpool(upload.write, bytes(buffer))
                    buffer.clear()
            await run_in_threadpool(upload.write, bytes(buffer))
        except ClientGoneProblem as error:
            if not resumable:
                self.drop(upload, error)
            raise
        except (RegistryProblem, OSError) as error:
            self.drop(upload, error)
            raise

    async def finish(self, upload: Upload, digest: ImageDigest) -> None:
        self._uploads.pop(upload.id, None)
        await run_in_threadpool(upload.finish, digest)

    def drop(self, upload: Upload, error: BaseException | None = None) -> None:
        self._uploads.pop(upload.id, None)
        upload.abort(error)

    def abort_all(self) -> None:
        for upload, _lock in list(self._uploads.values()):
            self.drop(upload)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The request's body, as long as a piece of it comes within 60 s."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                chunk = await anext(stream, None)
        except ClientDisconnect as error:
            raise ClientGoneProblem("BLOB_UPLOAD_INVALID", "the client went away") from error
        except TimeoutError as error:
            message = f"no byte of the body came within {READ_TIMEOUT_S:g} s"
            raise ClientGoneProblem("BLOB_UPLOAD_INVALID", message) from error
        if chunk is None:
            return
        yield chunk


def _upload_headers(upload: Upload) -> dict[str, str]:
    return {
        "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.id}",
        "Range": f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": upload.id,
    }


def _created(repository: str, kind: str, digest: ImageDigest) -> Response:
    headers = {"Location": f"/v2/{repository}/{kind}/{digest}", "Docker-Content-Digest": str(digest)}
    return Response(status_code=201, headers=headers)


class _Blobs:
    def __init__(self, store: RegistryStore, gate: _Gate, uploads: _Uploads) -> None:
        self._store = store
        self._gate = gate
        self._uploads = uploads

    async def read(self, request: Request) -> Response:
        """HEAD and GET, whole or one range of bytes."""
        repository = self._gate.require(request, "pull")
        digest = _digest(request.path_params["digest"])
        path = self._store.blob_path(repository, digest)
        if path is None:
            raise RegistryProblem("BLOB_UNKNOWN", f"{repository} has no blob {digest}")
        _check_range(request.headers.get("range"), path.stat().st_size)
        headers = {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    async def start(self, request: Request) -> Response:
        """Begin an upload; with `mount` take over another repository's blob; with `digest` the body is all of it."""
        repository = self._gate.require(request, "push")
        if self._mounted(request, repository):
            return _created(repository, "blobs", _digest(request.query_params["mount"]))
        digest = _digest(request.query_params["digest"]) if "digest" in request.query_params else None
        upload = self._uploads.start(repository)
        if digest is None:
            return Response(status_code=202, headers=_upload_headers(upload))
        await self._uploads.receive(upload, request)
        await self._uploads.finish(upload, digest)
        return _created(repository, "blobs", digest)

    def _mounted(self, request: Request, repository: str) -> bool:
        """Whether the mount was made; if it cannot be, the specification lets an upload begin in its place."""
        source = request.query_params.get("from", "")
        if "mount" not in request.query_params or not is_repository_name(source):
            return False
        digest = _digest(request.query_params["mount"])
        if not self._gate.may_pull(request, source) or self._store.blob_path(source, digest) is None:
            return False
        self._store.link_blob(repository, digest)
        return True

    async def status(self, request: Request) -> Response:
        repository = self._gate.require(request, "push")
        async with self._uploads.using(repository, request.path_params["upload_id"]) as upload:
            return Response(status_code=204, headers=_upload_headers(upload))

    async def append(self, request: Request) -> Response:
        repository = self._gate.require(request, "push")
        async with self._uploads.using(repository, request.path_params["upload_id"]) as upload:
            _check_position(request, upload)
            await self._uploads.receive(upload, request, resumable=True)
            return Response(status_code=202, headers=_upload_headers(upload))

    async def finish(self, request: Request) -> Response:
        repository = self._gate.require(request, "push")
        digest = _digest(request.query_params.get("digest"))
        async with self._uploads.using(repository, request.path_params["upload_id"]) as upload:
            _check_position(request, upload)
            await self._uploads.receive(upload, request)
            await self._uploads.finish(upload, digest)
        return _created(repository, "blobs", digest)

    async def cancel(self, request: Request) -> Response:
        repository = self._gate.require(request, "push")
        async with self._uploads.using(repository, request.path_params["upload_id"]) as upload:
            self._uploads.drop(upload)
        return Response(status_code=204)


def _check_range(header: str | None, size_bytes: int) -> None:
    """What Starlette would refuse in plain text is refused in the specification's shape."""
    match = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-\d+)", header) if header is not None else None
    if header is not None and (match is None or int(match[1] or 0) >= size_bytes):
        message = f"range must lie within {size_bytes} bytes, not {header[:80]!r}"
        raise RegistryProblem("RANGE_INVALID", message, {"Content-Range": f"bytes */{size_bytes}"})


def _check_position(request: Request, upload: Upload) -> None:
    """A chunk must begin where the last one ended; its Range header says where that is."""
    header = request.headers.get("content-range")
    if header is None:
        return
    match = re.fullmatch(r"(?:bytes[ =])?(\d+)-(\d+)(?:/.*)?", header)
    if match is None or int(match[1]) != upload.size:
        message = f"the chunk must begin at byte {upload.size}, Content-Range is {header[:80]!r}"
        raise RegistryProblem("RANGE_INVALID", message, _upload_headers(upload))


# Manifests.


class _Manifests:
    def __init__(self, store: RegistryStore, gate: _Gate) -> None:
        self._store = store
        self._gate = gate

    async def read(self, request: Request) -> Response:
        """HEAD and GET; which types the client accepts is not asked: there is one form of each manifest."""
        repository = self._gate.require(request, "pull")
        reference = request.path_params["reference"]
        if ":" in reference:
            _digest(reference)
        manifest = await run_in_threadpool(self._store.find_manifest, repository, reference)
        if manifest is None:
            raise RegistryProblem("MANIFEST_UNKNOWN", f"{repository} has no manifest {reference[:140]}")
        headers = {"Docker-Content-Digest": str(manifest.digest), "ETag": f'"{manifest.digest}"'}
        return Response(manifest.data, media_type=manifest.media_type, headers=headers)

    async def write(self, request: Request) -> Response:
        repository = self._gate.require(request, "push")
        reference = request.path_params["reference"]
        expected = _digest(reference) if ":" in reference else None
        if expected is None and not is_tag(reference):
            raise RegistryProblem("MANIFEST_INVALID", f"{reference[:140]!r} is neither a tag nor a digest")
        data = await _document(request)
        if expected is not None and ImageDigest.of(data) != expected:
            raise RegistryProblem("DIGEST_INVALID", f"the manifest is {ImageDigest.of(data)}, not {expected}")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        tag = reference if expected is None else None
        digest = await run_in_threadpool(self._store.put_manifest, repository, data, content_type, tag)
        return _created(repository, "manifests", digest)

    async def tags(self, request: Request) -> Response:
        repository = self._gate.require(request, "pull")
        if not self._store.has_repository(repository):
            raise RegistryProblem("NAME_UNKNOWN", f"no repository {repository}")
        count = request.query_params.get("n", str(TAGS_PAGE))
        if not count.isascii() or not count.isdigit():
            raise RegistryProblem("UNSUPPORTED", f"n must be a number, not {count[:20]!r}")
        limit = min(int(count[:9]), TAGS_PAGE)
        last = request.query_params.get("last", "")
        names = await run_in_threadpool(self._store.tags, repository)
        rest = [name for name in names if name > last]
        page = rest[:limit]
        headers = {}
        if page and len(rest) > len(page):
            headers["Link"] = f'</v2/{repository}/tags/list?n={limit}&last={quote(page[-1])}>; rel="next"'
        return JSONResponse({"name": repository, "tags": page}, headers=headers)


async def _document(request: Request) -> bytes:
    """A manifest's bytes, at most 4 MiB."""
    data = bytearray()
    async for chunk in _body(request):
        data += chunk
        if len(data) > MAX_DOCUMENT_BYTES:
            raise RegistryProblem("SIZE_INVALID", f"a manifest must be at most {MAX_DOCUMENT_BYTES} bytes")
    return bytes(data)
