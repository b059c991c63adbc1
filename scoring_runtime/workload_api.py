"""The device's workload API: the trust bundle, and signatures with this module's key (facts/iotedge.md §4.2).

HTTP/1.1 over a Unix socket (`unix:///path.sock`) or TCP (`http://host:port`). The key never comes here.
"""

from __future__ import annotations

import base64
import http.client
import socket
from typing import Any
from urllib.parse import quote, urlsplit

from .errors import ScoringError
from .json_codec import decode, encode
from .settings import EdgeModule

TIMEOUT_S = 10.0
_MAX_REPLY_BYTES = 1 << 20


class WorkloadError(ScoringError):
    """The workload API did not answer as it should; it may later."""

    code = "workload-api"
    temporary = True


class WorkloadApi:
    def __init__(self, module: EdgeModule) -> None:
        self._module = module

    def trust_bundle(self) -> str:
        """PEM certificates that the device's MQTT server chains to."""
        return self._text(self._call("GET", "/trust-bundle"), "certificate")

    def sign(self, data: str) -> str:
        """Base64 HMAC-SHA256 of `data` with the module's key."""
        module = self._module
        path = (
            f"/modules/{quote(module.module_id, safe='')}/genid/{quote(module.generation_id, safe='')}/sign"
        )
        body = {"keyId": "primary", "algo": "HMACSHA256", "data": base64.b64encode(data.encode()).decode()}
        return self._text(self._call("POST", path, encode(body)), "digest")

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = _connection(self._module.workload_uri)
        headers = {"Host": "workload", "Content-Type": "application/json", "Connection": "close"}
        target = f"{path}?api-version={self._module.api_version}"
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = response.read(_MAX_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise WorkloadError(
                f"{method} {path} on {self._module.workload_uri} failed: {error!r}"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise WorkloadError(f"{method} {path} on {self._module.workload_uri} answered {response.status}")
        try:
            return dict(decode(content))
        except (ScoringError, TypeError, ValueError) as error:
            raise WorkloadError(f"{method} {path} answered something other than a JSON object") from error

    @staticmethod
    def _text(reply: dict[str, Any], field: str) -> str:
        value = reply.get(field)
        if not isinstance(value, str):
            raise WorkloadError(f"the workload API's answer has no '{field}'")
        return value


def _connection(uri: str) -> http.client.HTTPConnection:
    parts = urlsplit(uri)
    if parts.scheme == "unix":
        return _UnixConnection(parts.path)
    if parts.scheme == "http" and parts.hostname:
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    raise WorkloadError(f"IOTEDGE_WORKLOADURI must be unix:///path or http://host:port, not '{uri}'")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)
