"""An HTTPS server that answers every request in one chosen way: what a hub says on a bad day, or no hub at all."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from iot_hub.pki import PkiFiles, ensure_pki

KEY = "c2VjcmV0LWtleS1vZi1hLWh1Yg=="


@dataclass
class FaultyHub:
    """Use as a context manager; `status` and `body` may be changed at any time, `requests` counts.

    Attributes:
        connection_string, ca_file: what a client is made with.
        authorizations: the Authorization header of every request.
    """

    folder: Path
    status: int = 200
    body: str = ""
    requests: int = 0
    authorizations: list[str] = field(default_factory=list)
    _server: Any = field(default=None, repr=False)

    def __enter__(self) -> FaultyHub:
        hub, pki = self, ensure_pki(self.folder, ["127.0.0.1"])

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                hub.requests += 1
                hub.authorizations.append(self.headers.get("Authorization", ""))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = hub.body.encode()
                self.send_response(hub.status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _TlsServer(("127.0.0.1", 0), Handler, pki)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.ca_file = pki.ca_cert
        port = self._server.server_address[1]
        self.host = f"127.0.0.1:{port}"
        self.connection_string = f"HostName={self.host};SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}"
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, status: int, name: str, words: str) -> None:
        """From now on answer as Azure does: an error's name and words."""
        self.status, self.body = status, json.dumps({"Message": f"ErrorCode:{name};{words}"})


class _TlsServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], pki: PkiFiles
    ) -> None:
        super().__init__(address, handler)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pki.server_cert, pki.server_key)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread: a client that breaks off holds up nobody.
        request.settimeout(10)
        with self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Clients that do not trust it break off; that is theirs to tell."""
