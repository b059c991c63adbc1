"""The workload API for modules: sign with the module's key, hand out the trust bundle.

Each module has a Unix socket of its own, so the socket says who calls; a request in another module's name is
refused. Paths and bodies are Azure IoT Edge's workload API 2018-06-28 to 2022-08-03 (`sign`, `trust-bundle`), as
far as SDKs need it to sign in; certificates and encryption are not served.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from edge_contracts.sas import sign

log = logging.getLogger(__name__)

SOCKET_NAME = "workload.sock"
API_VERSION = "2022-08-03"
KNOWN_VERSIONS = frozenset(
    {"2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-12-07", API_VERSION}
)
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 10  # per module, as IoT Edge's daemon
REQUEST_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 1.0


class _Refused(Exception):
    """An answer, not a failure of ours."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: list[str]
    query: dict[str, list[str]]
    body: bytes


class WorkloadApi:
    """Serves every module's socket; `directory` holds one folder per module, which the runtime mounts into it."""

    def __init__(
        self, directory: Path, key_of: Callable[[str], str | None], trust_bundle: Callable[[], str]
    ) -> None:
        self._directory = directory
        self._key_of, self._trust_bundle = key_of, trust_bundle
        self._servers: dict[str, asyncio.Server] = {}
        self._requests: set[asyncio.Task[None]] = set()

    async def ensure(self, module: str) -> Path:
        """Serve this module's socket and return its folder."""
        folder = self._directory / module
        if module not in self._servers:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._servers[module] = await self._listen(module, folder)
        return folder

    async def remove(self, module: str) -> None:
        """Stop serving this module and remove its folder."""
        server = self._servers.pop(module, None)
        if server is not None:
            server.close()
        shutil.rmtree(self._directory / module, ignore_errors=True)

    async def stop(self) -> None:
        """Stop serving; the folders stay, since running modules have them mounted."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        if self._requests:
            await asyncio.wait(self._requests, timeout=STOP_TIMEOUT_S)

    async def _listen(self, module: str, folder: Path) -> asyncio.Server:
        # A Unix socket's path may have 107 bytes; through /proc the folder's own path may be longer.
        folder_fd = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = Path(f"/proc/self/fd/{folder_fd}/{SOCKET_NAME}")
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            # The module runs as another user; the folder above is the agent's alone.
            path.chmod(0o666)
        finally:
            os.close(folder_fd)
        limit = asyncio.Semaphore(MAX_CONNECTIONS)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            async with limit:
                await self._serve(module, reader, writer)

        return await asyncio.start_server(connected, sock=listener, limit=MAX_HEAD_BYTES)

    async def _serve(self, module: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                try:
                    request = await _read_request(reader)
                    status, answer = HTTPStatus.OK, self._answer(module, request)
                except _Refused as refused:
                    status, answer = refused.status, {"message": str(refused)}
                writer.write(_response(status, answer))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("workload request of %s failed: %r", module, error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, module: str, request: _Request) -> dict[str, str]:
        version = request.query.get("api-version", [""])[0]
        if version not in KNOWN_VERSIONS:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"api-version must be one of {sorted(KNOWN_VERSIONS)}")
        match request.method, request.path:
            case "GET", ["trust-bundle"]:
                return {"certificate": self._trust_bundle()}
            case "POST", ["modules", name, "genid", _, "sign"]:
                if name != module:
                    raise _Refused(HTTPStatus.FORBIDDEN, f"module {name!r} is not the caller")
                return {"digest": self._sign(module, request.body)}
        raise _Refused(HTTPStatus.NOT_FOUND, f"{request.method} /{'/'.join(request.path)} is not served")

    def _sign(self, module: str, body: bytes) -> str:
        key = self._key_of(module)
        if key is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"module {module!r} has no identity")
        try:
            data = base64.b64decode(json.loads(body)["data"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "body must be JSON with base64 in 'data'") from error
        return sign(key, data)


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("ascii").rstrip("\r\n").split("\r\n")
        method, target, _ = request_line.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        length = int(headers.get("content-length", "0"))
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, "not an HTTP request this API reads") from error
    if not 0 <= length <= MAX_BODY_BYTES:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body must be at most {MAX_BODY_BYTES} bytes")
    url = urlsplit(target)
    path = [unquote(part) for part in url.path.split("/") if part]
    return _Request(method, path, parse_qs(url.query), await reader.readexactly(length))


def _response(status: HTTPStatus, answer: dict[str, str]) -> bytes:
    body = json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
