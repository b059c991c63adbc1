"""What only the embedded hub offers, under its own REST paths: telemetry and registry credentials."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_contracts.redact import Secret
from publisher.hub_client import TIMEOUT_S, HubRest

CREDENTIALS_PATH = "/edgewright/registry/credentials"


@dataclass(frozen=True, slots=True)
class TelemetryRecord:
    """One message as the embedded hub keeps it."""

    offset: int
    device_id: str
    module_id: str | None
    enqueued_time: str
    system_properties: Mapping[str, str]
    properties: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TelemetryPage:
    """Messages from an offset on; `next_offset` is where to go on."""

    records: tuple[TelemetryRecord, ...]
    next_offset: int


@dataclass(frozen=True, slots=True)
class RegistryUser:
    """A user of the embedded registry; times are RFC 3339 text."""

    username: str
    repositories: tuple[str, ...]
    actions: tuple[str, ...]
    created: str
    expires: str


@dataclass(frozen=True, slots=True)
class MintedCredential:
    """A user and the password that the hub does not keep."""

    user: RegistryUser
    password: Secret


class EmbeddedHubClient:
    """Client of the paths under `/edgewright`; errors are `HubClientError`s."""

    def __init__(self, connection_string: str, ca_file: Path | None) -> None:
        self._rest = HubRest(connection_string, ca_file=ca_file)

    def telemetry(
        self, *, device_id: str | None = None, offset: int | None = None, limit: int = 100, wait_s: float = 0
    ) -> TelemetryPage:
        """Messages of one device or of all, from `offset` on (None: from now on).

        Waits up to `wait_s` seconds, 60 at most, for the first.
        """
        start = "end" if offset is None else str(offset)
        query = {"from": start, "limit": str(limit), "wait": f"{wait_s:g}"}
        if device_id is not None:
            query["device"] = device_id
        answer = self._rest.request(
            "read telemetry", "GET", "/edgewright/telemetry", query=query, timeout_s=TIMEOUT_S + wait_s
        )
        return TelemetryPage(tuple(_record(row) for row in answer["messages"]), int(answer["next"]))

    def mint_credentials(self, repositories: Sequence[str], ttl_s: int) -> MintedCredential:
        """A new user of the embedded registry that may pull these repositories for `ttl_s` seconds."""
        body = {"repositories": list(repositories), "actions": ["pull"], "ttlSeconds": ttl_s}
        what = f"make credentials for {' and '.join(map(repr, repositories))}"
        answer = self._rest.request(what, "POST", CREDENTIALS_PATH, body)
        return MintedCredential(_registry_user(answer), Secret(answer["password"]))

    def registry_users(self) -> tuple[RegistryUser, ...]:
        """Users of the embedded registry that were made for pulling and have not expired, oldest first."""
        return tuple(map(_registry_user, self._rest.request("list registry users", "GET", CREDENTIALS_PATH)))

    def revoke_credentials(self, username: str) -> None:
        """Take a user away: it gets no new token from now on."""
        path = f"{CREDENTIALS_PATH}/{quote(username, safe='')}"
        self._rest.request(f"revoke registry user {username!r}", "DELETE", path)


def _registry_user(row: Mapping[str, Any]) -> RegistryUser:
    return RegistryUser(
        username=row["username"],
        repositories=tuple(row["repositories"]),
        actions=tuple(row["actions"]),
        created=row["created"],
        expires=row["expires"],
    )


def _record(row: Mapping[str, Any]) -> TelemetryRecord:
    return TelemetryRecord(
        offset=int(row["offset"]),
        device_id=row["deviceId"],
        module_id=row.get("moduleId"),
        enqueued_time=row["enqueuedTime"],
        system_properties=row["systemProperties"],
        properties=row["properties"],
        body=base64.b64decode(row["body"]),
    )
