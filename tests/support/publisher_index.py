"""A private package index on loopback: PEP 503 pages and wheels behind HTTP Basic."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote


class PackageIndex:
    """Serves the wheels of a folder; counts the requests that had the password."""

    def __init__(self, folder: Path, user: str, password: str) -> None:
        expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != expected:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="index"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                index.authorized += 1
                body, kind = _answer(folder, self.path.strip("/").split("/"))
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.authorized = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://{user}:{quote(password, safe='')}@127.0.0.1:{self._server.server_port}/simple/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


def _answer(folder: Path, parts: list[str]) -> tuple[bytes | None, str]:
    wheels = {path.name: path for path in folder.glob("*.whl")}
    if parts[0] == "simple" and len(parts) == 2:
        mine = [each for each in wheels if each.split("-")[0].replace("_", "-") == parts[1]]
        links = "".join(f'<a href="/wheels/{each}">{each}</a>' for each in mine)
        return (f"<html><body>{links}</body></html>".encode() if mine else None), "text/html"
    wheel = wheels.get(parts[-1])
    return (wheel.read_bytes() if wheel else None), "application/octet-stream"
