"""Debian's `docker-registry` with token authentication, and the service that issues its tokens.

The service answers `GET /token` (distribution: "Token Authentication Specification") with a JWT signed by a key of its own,
which the registry trusts by certificate. Who may do what comes from `rights`: rights as Azure's scope maps write them,
`repositories/NAME/content/read|write`, or None for a wrong user name or password; `*` is any repository.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from registry_servers import RunningRegistry, free_port, wait_for_port

ISSUER, SERVICE = "test-issuer", "test-registry"
LIFETIME_S = 60
_ACTIONS = {"pull": "content/read", "push": "content/write"}

Rights = Callable[[str, str], list[str] | None]


@contextmanager
def debian_token_registry(folder: Path, rights: Rights) -> Iterator[RunningRegistry]:
    """A registry whose users are those of `rights`."""
    server = shutil.which("docker-registry")
    if server is None:
        pytest.skip("needs docker-registry: apt-get install docker-registry")
    with token_service(folder, rights) as (realm, certificate):
        port = free_port()
        config = folder / "config.yml"
        config.write_text(
            _CONFIG.format(
                folder=folder, port=port, realm=realm, service=SERVICE, issuer=ISSUER, cert=certificate
            )
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([server, "serve", str(config)], stdout=log, stderr=log)
        try:
            wait_for_port(port)
            yield RunningRegistry(f"127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(10)


_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{token: {{realm: "{realm}", service: {service}, issuer: {issuer}, rootcertbundle: {cert}}}}}
"""


@contextmanager
def token_service(folder: Path, rights: Rights) -> Iterator[tuple[str, Path]]:
    """The service's address and the certificate of its key."""
    signer = _Signer(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(signer, rights))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", signer.certificate_file
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Signer:
    def __init__(self, folder: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        self.certificate_file = folder / "issuer.pem"
        self.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def token(self, subject: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "aud": SERVICE,
            "exp": now + LIFETIME_S,
            "nbf": now - 10,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        signed = f"{_part(header)}.{_part(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


def granted(rights: list[str], scopes: list[str]) -> list[dict[str, Any]]:
    """What of the scopes asked for (`repository:NAME:pull,push`) the rights cover."""
    access = []
    for scope in " ".join(scopes).split():
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = [
            action
            for action in actions.split(",")
            if action in _ACTIONS
            and {f"repositories/{each}/{_ACTIONS[action]}" for each in (name, "*")} & set(rights)
        ]
        access.append({"type": kind, "name": name, "actions": allowed})
    return access


def _handler(signer: _Signer, rights: Rights) -> type[BaseHTTPRequestHandler]:
    class TokenHandler(BaseHTTPRequestHandler):
        timeout = 20

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            _, _, encoded = self.headers.get("Authorization", "").partition(" ")
            username, _, password = base64.b64decode(encoded).decode().partition(":")
            held = rights(username, password)
            if held is None:
                self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]})
                return
            token = signer.token(username, granted(held, query.get("scope", [])))
            self._answer(200, {"token": token, "expires_in": LIFETIME_S})

        def _answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return TokenHandler


def _part(document: Any) -> str:
    return _encoded(json.dumps(document, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
