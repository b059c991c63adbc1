"""An OCI registry in memory, in threads, with faults to switch on.

with RegistryDouble(auth="bearer", users={"x": User("secret")}) as registry:
    registry.faults.statuses.append((503, {}))      # the next answer
    RegistryClient(registry.address, ...)
    registry.requests                               # what was asked, with which headers
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from edge_contracts.image_ref import ImageDigest

_BLOB = re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)")
_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/")
_UPLOAD = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<id>[0-9a-f]+)")


@dataclass(frozen=True)
class User:
    """Who may enter, and to do what."""

    password: str
    actions: frozenset[str] = frozenset({"pull", "push"})


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Faults:
    """What goes wrong; lists are used up front to back, one entry for each answer concerned."""

    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers instead of the next answers."""
    drop_after: list[int] = field(default_factory=list)
    """Bytes of the next blob answers, before the connection is cut."""
    drop_uploads: int = 0
    """How many uploads are cut without an answer."""
    flip: set[ImageDigest] = field(default_factory=set)
    """Blobs served with one bit flipped."""
    short: set[ImageDigest] = field(default_factory=set)
    """Blobs served half, without Content-Length, ended as if whole."""
    long: set[ImageDigest] = field(default_factory=set)
    """Blobs served with a byte more than they have."""
    ignore_range: bool = False
    redirect_blobs_to: str | None = None
    """Base URL of another registry double that has the blobs."""


@dataclass
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class RegistryDouble:
    """See the module; `auth` is `none`, `basic` or `bearer`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        auth: str = "none",
        users: Mapping[str, User] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.auth = auth
        self.users = dict(users or {})
        self.faults = Faults()
        self.requests: list[Request] = []
        self.tokens: dict[str, list[str]] = {}
        self.repositories: dict[str, _Repository] = {}
        self.uploads: set[str] = set()
        self._server = _Server((host, 0), _handler(self))
        if ssl_context is not None:
            self._server.socket = ssl_context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "http" if ssl_context is None else "https"
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def repository(self, name: str) -> _Repository:
        return self.repositories.setdefault(name, _Repository())

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def asked(self, method: str, part: str) -> list[Request]:
        """Requests of a method whose path holds `part`."""
        return [request for request in self.requests if request.method == method and part in request.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up, and TLS handshakes that fail, are what the tests are about."""


def _handler(double: RegistryDouble) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"double": double})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    double: RegistryDouble

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.double.requests.append(Request(self.command, self.path, dict(self.headers.items())))
        if url.path == "/token":
            self._token(parse_qs(url.query).get("scope", []))
        elif self.double.faults.statuses:
            status, headers = self.double.faults.statuses.pop(0)
            self._answer(status, _errors("UNAVAILABLE", "not now"), headers)
        elif self._permitted(url.path):
            self._route(url.path, query, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _route(self, path: str, query: Mapping[str, str], body: bytes) -> None:
        routes = (
            ("GET HEAD", _BLOB, self._get_blob),
            ("GET HEAD", _MANIFEST, self._get_manifest),
            ("PUT", _MANIFEST, self._put_manifest),
            ("POST", _UPLOADS, self._start_upload),
            ("PUT", _UPLOAD, self._finish_upload),
        )
        for methods, pattern, action in routes:
            match = pattern.fullmatch(path)
            if self.command in methods.split() and match is not None:
                action(match.groupdict(), query, body)
                return
        self._answer(404, _errors("NAME_UNKNOWN", "no such path"))

    def _permitted(self, path: str) -> bool:
        action = "push" if self.command in ("POST", "PUT") else "pull"
        repository = re.sub(r"/(blobs|manifests|referrers)/.*", "", path.removeprefix("/v2/"))
        if self.double.auth == "none" or self._grants(repository, action):
            return True
        challenge = 'Basic realm="double"'
        if self.double.auth == "bearer":
            realm = f"{self.double.scheme}://{self.double.address}/token"
            challenge = f'Bearer realm="{realm}",service="double",scope="repository:{repository}:{action}"'
        self._answer(401, _errors("UNAUTHORIZED", "authentication required"), {"WWW-Authenticate": challenge})
        return False

    def _grants(self, repository: str, action: str) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            scopes = [scope.split(":") for scope in self.double.tokens.get(value, [])]
            return any(scope[1] == repository and action in scope[2].split(",") for scope in scopes)
        user = self._user() if self.double.auth == "basic" else None
        return user is not None and action in user.actions

    def _user(self) -> User | None:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        name, _, password = base64.b64decode(value if scheme == "Basic" else "").decode().partition(":")
        user = self.double.users.get(name)
        return user if user is not None and user.password == password else None

    def _token(self, scopes: list[str]) -> None:
        """A token carries what the user may do of what was asked for, and no word about the rest."""
        user = self._user()
        if user is None:
            self._answer(401, _errors("UNAUTHORIZED", "wrong user or password"))
            return
        token = secrets.token_hex(8)
        asked = [scope.rsplit(":", 1) for scope in scopes]
        self.double.tokens[token] = [
            f"{resource}:{','.join(sorted(user.actions & set(actions.split(','))))}"
            for resource, actions in asked
        ]
        self._answer(200, json.dumps({"token": token}).encode())

    def _get_blob(self, names: Mapping[str, str], query: Mapping[str, str], body: bytes) -> None:
        faults, digest = self.double.faults, ImageDigest.parse(names["digest"])
        data = self.double.repository(names["repository"]).blobs.get(names["digest"])
        if self.command == "GET" and faults.redirect_blobs_to is not None:
            self._answer(307, b"", {"Location": f"{faults.redirect_blobs_to}{self.path}"})
        elif data is None:
            self._answer(404, _errors("BLOB_UNKNOWN", "blob unknown to registry"))
        elif digest in faults.short:
            self._cut(data[: len(data) // 2], {"Connection": "close"})
        else:
            data = bytes([data[0] ^ 1]) + data[1:] if digest in faults.flip else data
            self._send_range(data + b"x" if digest in faults.long else data)

    def _send_range(self, data: bytes) -> None:
        faults = self.double.faults
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not faults.ignore_range else 0
        if start >= len(data) > 0:
            self._answer(416, b"")
            return
        part = data[start:]
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        if self.command == "GET" and faults.drop_after:
            self._cut(
                part[: faults.drop_after.pop(0)], {**headers, "Content-Length": str(len(part))}, bool(start)
            )
        else:
            self._answer(206 if start else 200, part, headers)

    def _cut(self, data: bytes, headers: Mapping[str, str], is_range: bool = False) -> None:
        self.send_response(206 if is_range else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def _get_manifest(self, names: Mapping[str, str], query: Mapping[str, str], body: bytes) -> None:
        repository = self.double.repository(names["repository"])
        digest = repository.tags.get(names["reference"], names["reference"])
        if digest not in repository.manifests:
            self._answer(404, _errors("MANIFEST_UNKNOWN", "manifest unknown"))
            return
        media_type, data = repository.manifests[digest]
        self._answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _put_manifest(self, names: Mapping[str, str], query: Mapping[str, str], body: bytes) -> None:
        repository = self.double.repository(names["repository"])
        document = json.loads(body)
        blobs = [each["digest"] for each in [document.get("config"), *document.get("layers", [])] if each]
        linked = [each["digest"] for each in document.get("manifests", [])]
        if not (set(blobs) <= set(repository.blobs) and set(linked) <= set(repository.manifests)):
            self._answer(400, _errors("MANIFEST_BLOB_UNKNOWN", "a part of it was not pushed"))
            return
        digest = str(ImageDigest.of(body))
        repository.manifests[digest] = (self.headers["Content-Type"], body)
        if not names["reference"].startswith("sha256:"):
            repository.tags[names["reference"]] = digest
        self._answer(201, b"", {"Docker-Content-Digest": digest})

    def _start_upload(self, names: Mapping[str, str], query: Mapping[str, str], body: bytes) -> None:
        source = self.double.repositories.get(query.get("from", ""))
        if source is not None and query.get("mount") in source.blobs:
            self.double.repository(names["repository"]).blobs[query["mount"]] = source.blobs[query["mount"]]
            self._answer(201, b"")
            return
        upload = secrets.token_hex(8)
        self.double.uploads.add(upload)
        self._answer(202, b"", {"Location": f"/v2/{names['repository']}/blobs/uploads/{upload}?state=1"})

    def _finish_upload(self, names: Mapping[str, str], query: Mapping[str, str], body: bytes) -> None:
        if self.double.faults.drop_uploads:
            self.double.faults.drop_uploads -= 1
            self.close_connection = True
            return
        known = names["id"] in self.double.uploads and query.get("state") == "1"
        if not known or query.get("digest") != str(ImageDigest.of(body)):
            self._answer(400, _errors("DIGEST_INVALID", "not what the digest says"))
            return
        self.double.uploads.discard(names["id"])
        self.double.repository(names["repository"]).blobs[query["digest"]] = body
        self._answer(201, b"")

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _errors(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
