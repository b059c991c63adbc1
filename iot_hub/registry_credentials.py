"""Credentials for the embedded registry, and who may do what there.

- A minted credential is for some repositories (or globs), for some actions and for a time; its password is shown once
  and kept as a salted hash. A device chooses credentials by registry alone, so one covers a deployment's repositories.
- `iothubowner`, or another policy with service rights, with a service SAS token as the password pushes and pulls all.
- A device may use its id and its own SAS token to pull.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_contracts.redact import Secret
from iot_hub.errors import HubRequestError

ACTIONS = ("pull", "push")
DEFAULT_TTL_S = 90 * 86400
MAX_TTL_S = 366 * 86400
# More modules than a twin of 32 KB holds.
MAX_REPOSITORIES = 64

# OCI distribution specification, "Pulling manifests": <name>; a `*` may stand for any part of one.
_REPOSITORY = re.compile(r"[a-z0-9*]+(?:[._/-]+[a-z0-9*]+)*")


@dataclass(frozen=True, slots=True)
class CredentialRequest:
    """What `POST /edgewright/registry/credentials` asks for."""

    repositories: tuple[str, ...]
    actions: tuple[str, ...] = ("pull",)
    ttl_s: int = DEFAULT_TTL_S

    @classmethod
    def parse(cls, body: object) -> CredentialRequest:
        if not isinstance(body, Mapping):
            raise _invalid("the body", "a JSON object", body)
        unknown = sorted(set(body) - {"repository", "repositories", "actions", "ttlSeconds"})
        if unknown:
            raise _invalid(
                unknown[0],
                "absent: repository, repositories, actions and ttlSeconds are known",
                body[unknown[0]],
            )
        return cls(
            _repositories(body),
            _actions(body.get("actions", ["pull"])),
            _ttl(body.get("ttlSeconds", DEFAULT_TTL_S)),
        )


@dataclass(frozen=True, slots=True)
class RegistryCredentialRecord:
    """A minted credential as the hub keeps it; times in seconds since the epoch."""

    username: str
    salt: bytes
    password_hash: bytes
    repositories: tuple[str, ...]
    actions: tuple[str, ...]
    created: float
    expires: float

    @classmethod
    def mint(
        cls, request: CredentialRequest, *, now: float, random_bytes: Callable[[int], bytes]
    ) -> tuple[RegistryCredentialRecord, Secret]:
        """A new credential and its password, which is known to nobody afterwards."""
        password = base64.urlsafe_b64encode(random_bytes(32)).decode().rstrip("=")
        salt = random_bytes(16)
        record = cls(
            username=f"edgewright-{random_bytes(8).hex()}",
            salt=salt,
            password_hash=_hash(salt, password),
            repositories=request.repositories,
            actions=request.actions,
            created=now,
            expires=now + request.ttl_s,
        )
        return record, Secret(password)

    def opens_with(self, password: str, now: float) -> bool:
        return now < self.expires and hmac.compare_digest(self.password_hash, _hash(self.salt, password))


def _hash(salt: bytes, password: str) -> bytes:
    # One round is enough: the password has 256 random bits, so there is no dictionary to slow down.
    return hashlib.sha256(salt + password.encode()).digest()


def _repositories(body: Mapping[str, Any]) -> tuple[str, ...]:
    """`repositories`, or `repository` for one."""
    if "repositories" not in body:
        return (_repository(body.get("repository")),)
    values = body["repositories"]
    if "repository" in body or not isinstance(values, list) or not 1 <= len(values) <= MAX_REPOSITORIES:
        expected = f"a list of 1 to {MAX_REPOSITORIES} names, in place of repository"
        raise _invalid("repositories", expected, values)
    return tuple(dict.fromkeys(map(_repository, values)))


def _repository(value: object) -> str:
    if not isinstance(value, str) or len(value) > 255 or not _REPOSITORY.fullmatch(value):
        raise _invalid("repository", "a repository name in lower case, `*` for any part", value)
    return value


def _actions(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(action in ACTIONS for action in value):
        raise _invalid("actions", f"a list of {' and '.join(ACTIONS)}", value)
    return tuple(action for action in ACTIONS if action in value)


def _ttl(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
        raise _invalid("ttlSeconds", f"an integer from 1 to {MAX_TTL_S}", value)
    return value


def _invalid(where: str, expected: str, found: object) -> HubRequestError:
    return HubRequestError("ArgumentInvalid", f"{where} must be {expected}, not {found!r}", where=where)
