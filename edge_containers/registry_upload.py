"""One blob on its way to a registry: mounted, or sent whole, or in pieces that can be gone on with.

Rules (distribution-spec 1.1, "Pushing blobs"):

- What the repository has is not sent; what another repository of the registry has is mounted, if it allows that.
- Up to 32 MiB go in one PUT. More goes by PATCH in pieces of that size: after a failure the registry is asked how much
  it has, and gets the rest. Where it forgets a broken upload (Docker's registry 2.8 does, once a piece broke in its
  middle), the blob is begun anew.
- The upload's address is kept beside the store while pieces are sent, so that another process can go on.
- 413 makes the pieces smaller, down to half a MiB: proxies limit bodies.
- `Location` may be relative, and may already carry a query.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlencode, urljoin

import urllib3

from .errors import RegistryAuthError, RegistryError, RegistryTooLargeError, RegistryUnavailableError
from .image_model import Descriptor
from .parallel import check
from .registry_answers import discard
from .registry_transport import Body, Call, RegistryTransport
from .store import ContentStore

PIECE_BYTES = 32 << 20
SMALLER_PIECES = (4 << 20, 512 << 10)
"""What is tried when the registry takes no body of `PIECE_BYTES`."""

_OCTETS = "application/octet-stream"


class UploadLog(Protocol):
    """Where the addresses of unfinished uploads are kept."""

    def get(self, key: str) -> str | None: ...
    def put(self, key: str, url: str) -> None: ...
    def forget(self, key: str) -> None: ...


class UploadFiles:
    """An upload log of one small file for each; only the owner may read them, since an address can carry rights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> str | None:
        try:
            return self._path(key).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def put(self, key: str, url: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._folder / f".{secrets.token_hex(8)}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(url)
        part.replace(self._path(key))

    def forget(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()


class NoUploadLog:
    """Keeps nothing: an upload is gone on with in this process alone."""

    def get(self, key: str) -> str | None:
        return None

    def put(self, key: str, url: str) -> None:
        """Nothing."""

    def forget(self, key: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """How blobs are sent.

    Attributes:
        mount_from: repository of the same registry that may have a blob already.
        fetch: makes a blob that is not in the store be there; called only when the registry does not have it either.
        stop: set when the push is given up.
        piece_bytes: largest body.
    """

    mount_from: Callable[[Descriptor], str | None]
    fetch: Callable[[Descriptor], object] | None
    log: UploadLog
    stop: threading.Event
    piece_bytes: int


class BlobUpload:
    """One blob's way; `attempt` is called again after a temporary failure and goes on where that came."""

    def __init__(
        self,
        transport: RegistryTransport,
        repository: str,
        blob: Descriptor,
        store: ContentStore,
        *,
        options: UploadOptions,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._transport = transport
        self._repository = repository
        self._blob = blob
        self._store = store
        self._options = options
        self._progress = progress
        self._key = f"{transport.registry}/{repository}@{blob.digest}"
        self._piece_bytes = options.piece_bytes
        self._begun: str | None = None
        self.sent_bytes = 0

    def attempt(self) -> None:
        """Make the repository have the blob.

        Raises:
            RegistryError: of the kind the failure is; `sent_bytes` counts what went out, broken tries too.
        """
        check(self._options.stop)
        if self._is_there():
            self._options.log.forget(self._key)
            return
        url, offset = self._resumed() or (self._begin(), 0)
        if url is not None:
            self._fetch_missing()
            self._send_all(url, offset)

    def _is_there(self) -> bool:
        response = self._send("HEAD", self._url(f"blobs/{self._blob.digest}"), {200, 404})
        discard(response)
        return response.status == 200

    def _fetch_missing(self) -> None:
        if self._options.fetch is not None and not self._store.is_whole(self._blob):
            self._options.fetch(self._blob)

    def _begin(self) -> str | None:
        """Where to send to; None when the blob was mounted."""
        source = self._options.mount_from(self._blob)
        if source is None or source == self._repository:
            return self._start("")
        try:
            return self._start(f"?{urlencode({'mount': str(self._blob.digest), 'from': source})}", source)
        except RegistryAuthError:
            # Whoever may not read there may still push here.
            return self._start("")

    def _start(self, query: str, source: str | None = None) -> str | None:
        url = self._url(f"blobs/uploads/{query}")
        response = self._send("POST", url, {201, 202}, {"Content-Length": "0"}, source=source)
        discard(response)
        return None if response.status == 201 else self._next_url(response, url)

    def _resumed(self) -> tuple[str, int] | None:
        """Address and place of an upload that an earlier try began, if the registry still knows it."""
        url = self._options.log.get(self._key) or self._begun
        if url is None:
            return None
        # Whatever is wrong with the old one, a new one is begun: 404 and 400 are what registries answer.
        response = self._send("GET", url, {204, 400, 404, 416})
        discard(response)
        offset = _received_bytes(response.headers.get("Range", "")) if response.status == 204 else None
        if offset is None or offset > self._blob.size:
            self._forget()
            return None
        return self._next_url(response, url), offset

    def _remember(self, url: str) -> None:
        self._begun = url
        self._options.log.put(self._key, url)

    def _forget(self) -> None:
        self._begun = None
        self._options.log.forget(self._key)

    def _send_all(self, url: str, offset: int) -> None:
        try:
            with self._store.open(self._blob.digest) as file:
                while self._blob.size - offset > self._piece_bytes:
                    self._remember(url)
                    url = self._send_piece("PATCH", url, file, offset, self._piece_bytes)
                    offset += self._piece_bytes
                self._send_piece("PUT", self._finish_url(url), file, offset, self._blob.size - offset)
        except RegistryTooLargeError:
            refused_bytes = min(self._piece_bytes, self._blob.size)
            smaller = next((each for each in SMALLER_PIECES if each < refused_bytes), None)
            if smaller is None:
                raise
            self._piece_bytes = smaller
            self._forget()
            self.attempt()
            return
        self._forget()

    def _send_piece(self, method: str, url: str, file: BinaryIO, offset: int, size: int) -> str:
        """Send one piece; returns where the next one goes."""
        headers = {"Content-Type": _OCTETS, "Content-Length": str(size)}
        if method == "PATCH" or offset > 0:
            headers["Content-Range"] = f"{offset}-{offset + size - 1}"
        lost = {404, 416} | ({400} if offset > 0 else set())
        expected = {201 if method == "PUT" else 202} | lost
        response = self._send(method, url, expected, headers, lambda: _Piece(self, file, offset, size))
        discard(response)
        if response.status in lost:
            self._forget()
            raise self._transport.error(
                RegistryUnavailableError,
                f"forgot an upload ({response.status}); it is begun anew",
                self._repository,
            )
        return self._next_url(response, url) if method == "PATCH" else url

    def _finish_url(self, url: str) -> str:
        return f"{url}{'&' if '?' in url else '?'}{urlencode({'digest': str(self._blob.digest)})}"

    def _next_url(self, response: urllib3.BaseHTTPResponse, url: str) -> str:
        location = response.headers.get("Location")
        if location is None:
            raise self._transport.error(RegistryError, "does not say where to upload", self._repository)
        return urljoin(url, location)

    def _url(self, tail: str) -> str:
        return self._transport.url(self._repository, tail)

    def _send(
        self,
        method: str,
        url: str,
        expected: set[int],
        headers: dict[str, str] | None = None,
        body: Body | None = None,
        *,
        source: str | None = None,
    ) -> urllib3.BaseHTTPResponse:
        scopes = repository_scopes(self._repository, "pull,push", source)
        call = Call(method, url, self._repository, scopes, frozenset(expected), headers or {}, body)
        return self._transport.send(call)

    def took(self, size: int, position: int) -> None:
        """Count bytes that go out; `position` is in the blob, behind them."""
        check(self._options.stop)
        self.sent_bytes += size
        if self._progress is not None:
            self._progress(position, self._blob.size)


class _Piece:
    """A part of a blob as a request's body, from its first byte; `read` is what urllib3 asks of one."""

    def __init__(self, upload: BlobUpload, file: BinaryIO, offset: int, size: int) -> None:
        file.seek(offset)
        self._upload = upload
        self._file = file
        self._position = offset
        self._left = size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self._position += len(data)
        if data:
            self._upload.took(len(data), self._position)
        return data


def repository_scopes(repository: str, actions: str, source: str | None = None) -> tuple[str, ...]:
    """Token scopes for a repository and, for mounting, the one that blobs come from."""
    own = f"repository:{repository}:{actions}"
    return (own,) if source is None else (own, f"repository:{source}:pull")


def no_source(_blob: Descriptor) -> None:
    """No other repository has it."""


def _received_bytes(header: str) -> int | None:
    """How much the registry has: `0-N` is N + 1 bytes, but `0-0` is none, as both registries in use write it."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d+)", header)
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
