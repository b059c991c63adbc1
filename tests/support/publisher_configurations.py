"""IoT Hub's automatic deployments over TLS: create, read, update under an ETag; errors as the service words them."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_faults import KEY

from iot_hub.pki import ensure_pki

WORDS = {
    400: ("ArgumentInvalid", "BadRequest"),
    404: ("ConfigurationNotFound", "no such configuration"),
    409: ("ConfigurationAlreadyExists", "it exists"),
    412: ("PreconditionFailed", "the ETag is another"),
}


@dataclass
class ConfigurationsHub:
    """Use as a context manager; `configurations` is what it holds, `if_matches` the ETags that came with writes."""

    folder: Path
    configurations: dict[str, dict[str, Any]] = field(default_factory=dict)
    if_matches: list[str | None] = field(default_factory=list)
    _writes: int = 0

    def __enter__(self) -> ConfigurationsHub:
        hub, pki = self, ensure_pki(self.folder, ["127.0.0.1"])

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = unquote(urlsplit(self.path).path.removeprefix("/configurations/"))
                found = hub.configurations.get(name)
                self._answer(200 if found else 404, found)

            def do_PUT(self) -> None:
                name = unquote(urlsplit(self.path).path.removeprefix("/configurations/"))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*hub.put(name, body, self.headers.get("If-Match")))

            def _answer(self, status: int, document: dict[str, Any] | None) -> None:
                if document is None:
                    code, words = WORDS[status]
                    document = {"Message": f"ErrorCode:{code};{words}"}
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server_cert, pki.server_key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.ca_file = pki.ca_cert
        host = f"127.0.0.1:{self._server.server_address[1]}"
        self.connection_string = f"HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}"
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def put(self, name: str, body: dict[str, Any], if_match: str | None) -> tuple[int, dict[str, Any] | None]:
        """The service's rules: created without an ETag, changed with the right one, the content never."""
        self.if_matches.append(if_match)
        found = self.configurations.get(name)
        if name != name.lower() or body.get("id") != name:
            return 400, None
        if found is None and if_match is not None:
            return 404, None
        if found is not None and if_match is None:
            return 409, None
        if found is not None and if_match not in ('"*"', f'"{found["etag"]}"'):
            return 412, None
        if found is not None and body["content"] != {"modulesContent": found["content"]["modulesContent"]}:
            return 400, None
        self._writes += 1
        stored = {
            **body,
            "content": {**body["content"], "deviceContent": None},
            "etag": f"e{self._writes}",
            "createdTimeUtc": "2026-01-01T00:00:00.000Z",
            "systemMetrics": {"results": {}, "queries": {}},
        }
        self.configurations[name] = stored
        return 200, stored
