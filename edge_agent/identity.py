"""The device's module identities, made by the device itself (iotedge's identity service does the same).

The device calls the hub over HTTPS with its own SAS on exactly these paths:
`GET /devices/{d}/modules`, `PUT|DELETE /devices/{d}/modules/{m}` (`If-Match: *` on updates and deletes). It chooses
the modules' keys, says `managedBy: "IotEdge"`, and keeps the keys in its state folder, so that everything starts
later without a network.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import urllib3

from edge_agent.store import Store
from edge_contracts.errors import AgentError
from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString, make_sas

API_VERSION = "2017-11-08-preview"
TOKEN_TTL_S = 300
TIMEOUT_S = 10.0
SYSTEM_MODULES = ("$edgeAgent", "$edgeHub")
FILE = "identities.json"


class IdentityError(AgentError):
    """The hub did not give an identity."""

    code = "identity"


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """A module's identity as this device keeps it."""

    name: str
    key: Secret
    generation_id: str = ""


class Identities(Protocol):
    """What the agent needs of module identities. Blocking; callable from any thread."""

    def names(self) -> frozenset[str]:
        """Modules with an identity, without the two system modules."""

    def key_of(self, name: str) -> str | None:
        """A module's key, base64; None when it has no identity."""

    def ensure(self, name: str, *, again: bool = False) -> ModuleIdentity:
        """Make the identity if this device has no key for it; `again` sets the key anew at the hub.

        Raises:
            IdentityError: the hub could not be reached, or refused.
        """

    def adopt(self, name: str) -> None:
        """Give a module a key without asking the hub, which learns it when the module's messages go there."""

    def remove(self, name: str) -> None:
        """Delete the identity at the hub, then its key here.

        Raises:
            IdentityError: the hub could not be reached, or refused; the key is kept.
        """


@dataclass(slots=True)
class HubIdentities:
    """Module identities over the hub's HTTPS API.

    Attributes:
        https_port: the hub's port; the connection string's own port, if it names one, is the service API's as well.
        ca_file: PEM file to trust instead of the system's authorities.
    """

    connection: ConnectionString
    https_port: int
    ca_file: Path | None
    store: Store
    _known: dict[str, ModuleIdentity] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self) -> None:
        """Read the keys kept by an earlier run."""
        for name, entry in (self.store.read(FILE) or {}).items():
            self._known[name] = ModuleIdentity(name, Secret(entry["primaryKey"]), entry["generationId"])

    def names(self) -> frozenset[str]:
        return frozenset(self._known) - frozenset(SYSTEM_MODULES)

    def key_of(self, name: str) -> str | None:
        identity = self._known.get(name)
        return identity.key.reveal() if identity else None

    def ensure(self, name: str, *, again: bool = False) -> ModuleIdentity:
        with self._lock:
            known = self._known.get(name)
            if known is not None and not again:
                return known
            key = known.key if known else Secret(_new_key())
            answer = self._put(name, key)
            identity = ModuleIdentity(name, key, str(answer.get("generationId") or ""))
            self._save({**self._known, name: identity})
            return identity

    def adopt(self, name: str) -> None:
        with self._lock:
            if name not in self._known:
                self._save({**self._known, name: ModuleIdentity(name, Secret(_new_key()), "")})

    def remove(self, name: str) -> None:
        with self._lock:
            self._call("DELETE", name, None, expected=(200, 204, 404), if_match=True)
            self._save({known: entry for known, entry in self._known.items() if known != name})

    def _save(self, identities: dict[str, ModuleIdentity]) -> None:
        document = {
            name: {"primaryKey": identity.key.reveal(), "generationId": identity.generation_id}
            for name, identity in identities.items()
        }
        self.store.write(FILE, document)
        self._known = identities

    def _put(self, name: str, key: Secret) -> dict[str, Any]:
        keys = {"primaryKey": key.reveal(), "secondaryKey": _new_key()}
        body = {
            "moduleId": name,
            "managedBy": "IotEdge",
            "deviceId": self.connection.device_id,
            "authentication": {"type": "sas", "symmetricKey": keys},
        }
        # Without If-Match a PUT creates; one that exists (the system modules always do) is then updated.
        return self._call("PUT", name, body, expected=(200, 201, 409)) or self._call(
            "PUT", name, body, expected=(200, 201), if_match=True
        )

    def _call(
        self,
        method: str,
        name: str,
        body: dict[str, Any] | None,
        *,
        expected: tuple[int, ...],
        if_match: bool = False,
    ) -> dict[str, Any]:
        """The answer's document; empty where the identity was not touched (409)."""
        device = quote(str(self.connection.device_id), safe="")
        host = self.connection.gateway_host_name or self.connection.host_name
        path = f"/devices/{device}/modules/{quote(name, safe='')}?api-version={API_VERSION}"
        headers = {"Authorization": self._token(), "Content-Type": "application/json"}
        if if_match:
            headers["If-Match"] = "*"
        where = f"{host}:{self.https_port}"
        try:
            with self._pool(host) as pool:
                answer = pool.request(
                    method, path, body=None if body is None else json.dumps(body), headers=headers
                )
                status, content = answer.status, answer.data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise IdentityError(
                f"the hub at {where} cannot be reached for module identities: {_reason(error)}",
                where=where,
                temporary=True,
                next_command="edge-agent check",
            ) from error
        if status not in expected:
            raise _refused(method, name, where, status, content)
        return {} if status == 409 else {"moduleId": name, **_json_object(content)}

    def _token(self) -> str:
        key = self.connection.shared_access_key.reveal()
        return make_sas(self.connection.resource_uri, key, expiry=int(time.time()) + TOKEN_TTL_S)

    def _pool(self, host: str) -> urllib3.HTTPSConnectionPool:
        return urllib3.HTTPSConnectionPool(
            host,
            self.https_port,
            ca_certs=str(self.ca_file) if self.ca_file else None,
            timeout=urllib3.Timeout(connect=TIMEOUT_S, read=TIMEOUT_S),
            retries=False,
        )


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner).rpartition(": ")[2] or type(error).__name__


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _refused(method: str, name: str, where: str, status: int, content: bytes) -> IdentityError:
    answer = _json_object(content)
    text = str(answer.get("Message") or answer.get("errorMessage") or "no reason given")[:200]
    # 500 counts as a network error, as in iotedge's identity service.
    return IdentityError(
        f"the hub at {where} refused {method} of module identity {name}: {status} {text}",
        code="unauthorized" if status in (401, 403) else "identity",
        where=where,
        temporary=status >= 500 or status == 429,
        next_command="edge-agent check",
    )
