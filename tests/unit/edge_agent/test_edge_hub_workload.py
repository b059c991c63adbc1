"""The workload API as an SDK calls it, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edge_agent.edge_hub.workload import SOCKET_NAME, WorkloadApi

KEYS = {"scorer": base64.b64encode(b"k" * 32).decode(), "other": base64.b64encode(b"o" * 32).decode()}


async def call(folder: Path, request: bytes) -> tuple[int, dict[str, str]]:
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET_NAME)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def post(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def served(tmp_path: Path, check: Callable[[Path], Awaitable[None]]) -> None:
    async def run() -> None:
        api = WorkloadApi(tmp_path / "workload", KEYS.get, lambda: "PEM")
        folder = await api.ensure("scorer")
        try:
            await check(folder)
        finally:
            await api.stop()

    asyncio.run(run())


def test_sign_is_the_hmac_of_the_data_with_the_modules_key(tmp_path: Path) -> None:
    async def check(folder: Path) -> None:
        body = {"keyId": "primary", "algo": "HMACSHA256", "data": base64.b64encode(b"uri\n1").decode()}
        status, answer = await call(folder, post("/modules/scorer/genid/1/sign?api-version=2019-01-30", body))
        wanted = hmac.digest(b"k" * 32, b"uri\n1", hashlib.sha256)
        assert (status, answer) == (200, {"digest": base64.b64encode(wanted).decode()})

    served(tmp_path, check)


def test_the_trust_bundle_is_the_device_authority(tmp_path: Path) -> None:
    async def check(folder: Path) -> None:
        request = b"GET /trust-bundle?api-version=2019-01-30 HTTP/1.1\r\nHost: x\r\n\r\n"
        assert await call(folder, request) == (200, {"certificate": "PEM"})

    served(tmp_path, check)


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (post("/modules/other/genid/1/sign?api-version=2019-01-30", {"data": ""}), 403, "not the caller"),
        (post("/modules/scorer/genid/1/sign?api-version=2019-01-30", {"data": 7}), 400, "base64"),
        (post("/modules/scorer/genid/1/sign?api-version=2019-01-30", []), 400, "base64"),
        (post("/modules/scorer/genid/1/sign?api-version=1.0", {"data": ""}), 400, "api-version"),
        (b"GET /modules?api-version=2019-01-30 HTTP/1.1\r\n\r\n", 404, "not served"),
        (b"nonsense\r\n\r\n", 400, "not an HTTP request"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 413, "at most"),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 413, "at most"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", 400, "not an HTTP request"),
    ],
)
def test_a_bad_request_is_refused_with_a_reason(
    tmp_path: Path, request_bytes: bytes, status: int, words: str
) -> None:
    async def check(folder: Path) -> None:
        found, answer = await call(folder, request_bytes)
        assert found == status
        assert words in answer["message"]

    served(tmp_path, check)


def test_a_long_state_folder_still_has_a_socket(tmp_path: Path) -> None:
    async def run() -> None:
        deep = tmp_path / ("d" * 60) / ("e" * 60)
        api = WorkloadApi(deep, KEYS.get, lambda: "PEM")
        folder = await api.ensure("scorer")
        assert (folder / SOCKET_NAME).is_socket()
        await api.remove("scorer")
        assert not folder.exists()

    asyncio.run(run())
