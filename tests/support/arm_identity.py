"""A managed identity on loopback: where `azure-identity` gets its tokens on an App Service (IDENTITY_ENDPOINT, 2019-08-01)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from arm_emulator import TOKEN

_HEADER = "identity-header-of-the-test"


@contextmanager
def managed_identity() -> Iterator[dict[str, str]]:
    """Environment variables with which `DefaultAzureCredential` gets the ARM emulator's token, and looks nowhere else."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _IdentityHandler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{server.server_port}/msi/token",
            "IDENTITY_HEADER": _HEADER,
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _IdentityHandler(BaseHTTPRequestHandler):
    timeout = 20

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        is_known = self.headers.get("X-IDENTITY-HEADER") == _HEADER and "resource" in query
        document = {
            "access_token": TOKEN,
            "expires_on": str(int(time.time()) + 3600),
            "resource": query.get("resource", [""])[0],
            "token_type": "Bearer",
        }
        data = json.dumps(document if is_known else {"error": "unauthorized_client"}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
