"""When credentials that were made here end: noted in the workspace's audit, and looked up when a manifest is checked.

A manifest holds a user name and a password, and neither says how long it is good. Two passwords of one user may end at
different times, so a note has the start of the password's SHA-256 too: of a random password of 160 bits or more, from
which 48 bits of a hash give nothing away. Credentials of which the end is not known are noted without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from edge_contracts.manifest import Finding, RegistryCredential, Severity
from edge_contracts.redact import Secret
from publisher.credentials.source import WARN_BEFORE_S, CredentialSource, PullCredential
from publisher.workspace import Workspace

ACTION = "registry credentials"
CODE = "credential-ends"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A source whose credentials are noted; `device` is the one they are for."""

    source: CredentialSource
    workspace: Workspace
    device: str | None = None

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        made = self.source.pull_credential(registry, repositories)
        if made is not None:
            ends = {} if made.expires is None else _end(made.password, made.expires)
            self.workspace.audit(
                ACTION, registry, username=made.username, source=made.source, device=self.device, **ends
            )
        return made


def ends_of(workspace: Workspace, credentials: Iterable[RegistryCredential]) -> dict[str, datetime]:
    """When each of these ends, by id; those are left out of which that is not known here."""
    with workspace.database.read() as db:
        rows = db.execute("SELECT detail FROM audit WHERE action = ?", (ACTION,)).fetchall()
    notes = (json.loads(row["detail"]) for row in rows)
    known = {(note["username"], note["password"]): note["expires"] for note in notes if "expires" in note}
    found = {each.id: known.get((each.username, _fingerprint(each.password))) for each in credentials}
    return {identifier: datetime.fromisoformat(text) for identifier, text in found.items() if text}


def findings_of(
    workspace: Workspace, credentials: tuple[RegistryCredential, ...], now: datetime
) -> tuple[Finding, ...]:
    """A warning for each that has ended or will within 14 days."""
    ends, soon = ends_of(workspace, credentials), now + timedelta(seconds=WARN_BEFORE_S)
    return tuple(_finding(each, ends[each.id], now) for each in credentials if ends.get(each.id, soon) < soon)


def _finding(credential: RegistryCredential, end: datetime, now: datetime) -> Finding:
    where = f"registryCredentials.{credential.id}"
    day = end.astimezone(UTC).strftime("%Y-%m-%d")
    when = f"ended on {day}" if end <= now else f"end on {day}, in {(end - now).days} days"
    text = f"'{where}' the credentials for {credential.address} {when}: make new ones and apply them"
    return Finding(CODE, Severity.WARNING, where, text)


def _end(password: Secret, expires: datetime) -> dict[str, str]:
    return {"password": _fingerprint(password), "expires": expires.isoformat()}


def _fingerprint(password: Secret) -> str:
    return hashlib.sha256(password.reveal().encode()).hexdigest()[:12]
