"""Credentials of the embedded registry, made through the hub."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from edge_contracts.redact import Secret
from publisher.credentials.source import DEFAULT_LIFE_S, IssuedUser, PullCredential
from publisher.embedded_hub import HubEndpoint
from publisher.hub_client import service_token

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials


@dataclass(frozen=True, slots=True)
class EmbeddedCredentials:
    """A new user for each deployment, which may pull its repositories for `life_s` seconds.

    Pushing uses the hub's own policy: a token of an hour as password, nothing to keep.
    """

    endpoint: HubEndpoint
    life_s: int = DEFAULT_LIFE_S

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        if not self.covers(registry):
            return None
        made = self.endpoint.extras().mint_credentials(repositories, self.life_s)
        return PullCredential(
            registry,
            made.user.username,
            made.password,
            "embedded registry",
            made.user.repositories,
            datetime.fromisoformat(made.user.expires),
        )

    def push_credentials(self, registry: str) -> BasicCredentials | None:
        """For pushing to the embedded registry; None for any other."""
        from edge_containers.registry_client import BasicCredentials

        if not self.covers(registry):
            return None
        identity = self.endpoint.policy
        return BasicCredentials(str(identity.shared_access_key_name), Secret(service_token(identity)))

    def users(self, registry: str) -> tuple[IssuedUser, ...]:
        return tuple(
            IssuedUser(user.username, user.repositories, datetime.fromisoformat(user.expires))
            for user in self.endpoint.extras().registry_users()
        )

    def revoke(self, registry: str, username: str) -> None:
        self.endpoint.extras().revoke_credentials(username)

    def covers(self, registry: str) -> bool:
        """Whether it is the embedded registry."""
        address = self.endpoint.address
        return address is not None and registry.lower() == address.registry.lower()
