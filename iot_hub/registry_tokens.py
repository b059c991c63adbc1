"""Who may do what in the embedded registry: grants, the short-lived tokens made of them, and a brake on guessing.

A token is `base64url(JSON).base64url(HMAC-SHA256 of the first part)`. It says who, until when, and which actions on
which repositories; the registry alone reads it. It lives 300 s, so a credential that was taken back is good for at
most that long.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

TOKEN_LIFETIME_S = 300
KEY_BYTES = 32
# Ten wrong passwords a minute: no person types faster, and guessing a 128-bit secret stays hopeless.
FAILURES_ALLOWED = 10
FAILURE_WINDOW_S = 60.0
FAILURES_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class RegistryGrant:
    """What a user may do: `actions` ("pull", "push") on repositories that match one of the glob patterns.

    `expires_at` (seconds since 1970) shortens tokens made of this grant; None leaves them their 300 s.
    """

    subject: str
    repositories: tuple[str, ...]
    actions: Collection[str]
    expires_at: float | None = None

    def allowed(self, repository: str) -> frozenset[str]:
        """Actions allowed on one repository; `*` in a pattern matches slashes, too."""
        matches = any(fnmatchcase(repository, pattern) for pattern in self.repositories)
        return frozenset(self.actions) if matches else frozenset()


class RegistryAuth(Protocol):
    """Where the registry's users come from."""

    def check(self, username: str, password: str) -> RegistryGrant | None:
        """The user's grant, or None for a wrong name or password.

        Called on the event loop, so it must not block; compares in constant time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """One `repository:NAME:ACTIONS` of a token request (distribution spec, token authentication)."""

    repository: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(sorted(self.actions))}"


def parse_scopes(texts: list[str]) -> list[Scope]:
    """Scopes on repositories, at most 20; other kinds of resources do not exist here and are left out."""
    scopes = []
    for text in " ".join(texts).split()[:20]:
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and name:
            scopes.append(Scope(name, frozenset(actions.split(","))))
    return scopes


@dataclass(frozen=True, slots=True)
class Access:
    """What one request may do: that of a token, or, with a plain password, that of its grant."""

    subject: str
    scopes: tuple[Scope, ...] = ()
    grant: RegistryGrant | None = None

    def allows(self, repository: str, action: str) -> bool:
        if self.grant is not None:
            return action in self.grant.allowed(repository)
        return any(scope.repository == repository and action in scope.actions for scope in self.scopes)


class TokenSigner:
    """Makes and reads tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> TokenSigner:
        """With the key in `path`, made there (mode 0600) when it is missing or not whole."""
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != KEY_BYTES:
            key = secrets.token_bytes(KEY_BYTES)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
            temporary.replace(path)
        return cls(key)

    def issue(self, grant: RegistryGrant, scopes: list[Scope], now: float) -> tuple[str, int]:
        """A token for what of `scopes` the grant allows, and its lifetime in seconds."""
        lifetime_s = TOKEN_LIFETIME_S
        if grant.expires_at is not None:
            lifetime_s = max(0, min(lifetime_s, int(grant.expires_at - now)))
        access = [
            [scope.repository, sorted(scope.actions & grant.allowed(scope.repository))] for scope in scopes
        ]
        claims = {"sub": grant.subject, "exp": int(now) + lifetime_s, "access": access}
        payload = _base64(json.dumps(claims, separators=(",", ":")).encode())
        return f"{payload}.{self._sign(payload)}", lifetime_s

    def read(self, token: str, now: float) -> Access | None:
        """What the token allows, or None when it is not ours or has expired."""
        payload, _, signature = token.partition(".")
        if not hmac.compare_digest(self._sign(payload).encode(), signature.encode(errors="replace")):
            return None
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims["exp"] <= now:
            return None
        scopes = tuple(Scope(repository, frozenset(actions)) for repository, actions in claims["access"])
        return Access(claims["sub"], scopes)

    def _sign(self, payload: str) -> str:
        return _base64(hmac.new(self._key, payload.encode(errors="replace"), hashlib.sha256).digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_basic(header: str) -> tuple[str, str] | None:
    """User name and password of an `Authorization: Basic` header, or None when it is none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    username, colon, password = text.partition(":")
    return (username, password) if colon else None


class LoginBrake:
    """Counts wrong passwords per peer address and user name; remembers the last 4096 such pairs."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def wait_s(self, peer: str, username: str, now: float) -> int:
        """Seconds until the next attempt is looked at; 0 when it may come now."""
        recent = [at for at in self._failures.get((peer, username), ()) if now - at < FAILURE_WINDOW_S]
        return int(FAILURE_WINDOW_S - (now - recent[0])) + 1 if len(recent) >= FAILURES_ALLOWED else 0

    def failed(self, peer: str, username: str, now: float) -> None:
        times = self._failures.setdefault((peer, username), [])
        times.append(now)
        del times[:-FAILURES_ALLOWED]
        self._failures.move_to_end((peer, username))
        if len(self._failures) > FAILURES_REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, peer: str, username: str) -> None:
        self._failures.pop((peer, username), None)
