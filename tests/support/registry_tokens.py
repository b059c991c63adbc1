"""Debian's `docker-registry` with token authentication, and the token server it trusts (RS256, as ACR's scheme is).

with token_registry(folder, users={"ci": ("secret", {"pull", "push"})}) as running:
    RegistryClient(running.address, credentials=…)
    running.tokens.asked        # scopes of each token asked for
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from registry_servers import free_port, wait_for_port

ISSUER, SERVICE = "test-tokens", "test-registry"
Users = Mapping[str, tuple[str, set[str]]]
"""Password, and what may be done, of each user."""


@dataclass
class TokenServer:
    """`GET /token` for user name and password; `POST /token` for a refresh token, which is the password."""

    users: Users
    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    asked: list[list[str]] = field(default_factory=list)

    def token(self, user: str, scopes: list[str]) -> str:
        """A token with as much of the scopes as the user has, and no word about the rest."""
        access = [
            {
                "type": kind,
                "name": name,
                "actions": sorted(self.allowed(user, name) & set(actions.split(","))),
            }
            for kind, name, actions in (scope.split(":", 2) for scope in scopes)
        ]
        now = int(time.time())
        chain = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        header = {"typ": "JWT", "alg": "RS256", "x5c": [chain]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 5,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = f"{_encoded(header)}.{_encoded(claims)}"
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"

    def allowed(self, user: str, repository: str) -> set[str]:
        """What a user may do in a repository: "pull", "push"."""
        return self.users[user][1]

    def user_of(self, authorization: str, form: Mapping[str, list[str]]) -> str | None:
        if "refresh_token" in form:
            given = form["refresh_token"][0]
            return next((name for name, (password, _) in self.users.items() if password == given), None)
        scheme, _, value = authorization.partition(" ")
        name, _, password = base64.b64decode(value if scheme == "Basic" else "").decode().partition(":")
        return name if name in self.users and self.users[name][0] == password else None


@dataclass(frozen=True)
class TokenRegistry:
    address: str
    tokens: TokenServer


@contextmanager
def token_registry(
    folder: Path, users: Users, make: Callable[..., TokenServer] = TokenServer
) -> Iterator[TokenRegistry]:
    """The registry and its token server, both on loopback; `make` is for a server that has its users elsewhere."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry: apt-get install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = _certificate(key)
    (folder / "trusted.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tokens = make(users, key, certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"tokens": tokens}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    port = free_port()
    realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port, realm=realm))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        wait_for_port(port)
        yield TokenRegistry(f"127.0.0.1:{port}", tokens)
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()
        server.server_close()
        thread.join(10)


_CONFIG = f"""\
version: 0.1
log: {{{{level: warn}}}}
storage: {{{{filesystem: {{{{rootdirectory: {{folder}}/data}}}}}}}}
http: {{{{addr: "127.0.0.1:{{port}}"}}}}
auth: {{{{token: {{{{realm: "{{realm}}", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {{folder}}/trusted.pem}}}}}}}}
"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tokens: TokenServer

    def do_GET(self) -> None:
        self._answer(parse_qs(urlsplit(self.path).query))

    def do_POST(self) -> None:
        self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self, asked: Mapping[str, list[str]]) -> None:
        scopes = [scope for text in asked.get("scope", []) for scope in text.split()]
        user = self.tokens.user_of(self.headers.get("Authorization", ""), asked)
        self.tokens.asked.append(scopes)
        body = json.dumps({"token": self.tokens.token(user, scopes)} if user else {}).encode()
        self.send_response(200 if user else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _encoded(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
