"""Who may push to and pull from the embedded registry: minted credentials, policies and devices."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from edge_contracts.errors import ContractError
from edge_contracts.redact import Secret
from edge_contracts.sas import parse_sas
from edge_contracts.twin import format_time
from iot_hub.authentication import Authenticator, token_host
from iot_hub.errors import HubRequestError
from iot_hub.hub import Hub
from iot_hub.identities import IdentityKey
from iot_hub.policies import Right
from iot_hub.registry import RegistryGrant
from iot_hub.registry_credentials import ACTIONS, CredentialRequest, RegistryCredentialRecord
from iot_hub.store import HubStore

_EVERYTHING = ("*",)


class RegistryAccess:
    """Mints and checks; the `RegistryAuth` of `make_registry`.

    Args:
        now: seconds since the epoch.
    """

    def __init__(
        self, hub: Hub, store: HubStore, authenticator: Authenticator, now: Callable[[], float]
    ) -> None:
        self._hub = hub
        self._store = store
        self._authenticator = authenticator
        self._now = now
        self._records: dict[str, RegistryCredentialRecord] = {}

    def load(self, records: tuple[RegistryCredentialRecord, ...]) -> None:
        self._records = {record.username: record for record in records}

    def records(self) -> tuple[RegistryCredentialRecord, ...]:
        """Credentials that have not expired, oldest first."""
        valid = (record for record in self._records.values() if self._now() < record.expires)
        return tuple(sorted(valid, key=lambda record: (record.created, record.username)))

    async def mint(self, request: CredentialRequest) -> tuple[RegistryCredentialRecord, Secret]:
        """A new credential, durable; those that expired go on this occasion."""
        record, password = RegistryCredentialRecord.mint(
            request, now=self._now(), random_bytes=secrets.token_bytes
        )
        await self._hub.run_store(self._store.add_registry_credential, record)
        self._records[record.username] = record
        expired = [name for name, each in self._records.items() if each.expires <= self._now()]
        if expired:
            await self._remove(expired)
        return record, password

    async def revoke(self, username: str) -> None:
        if username not in self._records:
            raise HubRequestError("NotFound", f"no registry credential {username!r}", where=username)
        await self._remove([username])

    def check(self, username: str, password: str) -> RegistryGrant | None:
        """What these may do; None if nothing."""
        record = self._records.get(username)
        if record is not None:
            if not record.opens_with(password, self._now()):
                return None
            return RegistryGrant(username, record.repositories, record.actions)
        return self._check_token(username, password)

    def _check_token(self, username: str, password: str) -> RegistryGrant | None:
        try:
            token = parse_sas(password)
            if token.policy == username:
                self._authenticator.check_service(password, [token_host(token)], Right.SERVICE_CONNECT)
                return RegistryGrant(username, _EVERYTHING, ACTIONS)
            audience = f"{token_host(token)}/devices/{username}"
            self._authenticator.check_identity(password, IdentityKey(username), [audience])
        except (ContractError, HubRequestError):
            return None
        return RegistryGrant(username, _EVERYTHING, ("pull",))

    async def _remove(self, usernames: list[str]) -> None:
        await self._hub.run_store(self._store.remove_registry_credentials, usernames)
        for name in usernames:
            self._records.pop(name, None)


def credential_document(record: RegistryCredentialRecord, address: str) -> dict[str, Any]:
    """A credential without its password."""
    return {
        "username": record.username,
        "address": address,
        "repositories": list(record.repositories),
        "actions": list(record.actions),
        "created": format_time(datetime.fromtimestamp(record.created, UTC)),
        "expires": format_time(datetime.fromtimestamp(record.expires, UTC)),
    }
