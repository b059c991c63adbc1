"""Registry credentials: what images are pushed with, and what devices pull them with.

Rules (DECISIONS A4):
- A device's credentials may pull, one repository, for a limited time; they are made per deployment and can be revoked.
- The embedded registry makes them on request. For any other registry they are given by the user and passed on as they
  are, which is said.
- The device's runtime chooses credentials by registry alone, so a deployment has one for each registry.
- Pushing to the embedded registry uses the hub's own policy: a token of an hour as password, nothing to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from publisher.embedded_hub import HubEndpoint
from publisher.hub_client import service_token

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials

DAY_S = 86_400
DEFAULT_LIFE_S = 90 * DAY_S


class NoCredentialsError(PublishError):
    """Nothing here can make credentials for that registry."""

    code = "no-credentials"


class CredentialSource(Protocol):
    """Makes pull credentials for the images of a deployment."""

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> RegistryCredential | None:
        """One for all these repositories of a registry, or None when this source does not know the registry.

        Raises:
            NoCredentialsError: it knows the registry, and one credential cannot cover them all.
        """
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedCredentials:
    """Credentials of the embedded registry, made through the hub."""

    endpoint: HubEndpoint
    life_s: int = DEFAULT_LIFE_S

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> RegistryCredential | None:
        if not self.covers(registry):
            return None
        if len(repositories) > 1:
            raise NoCredentialsError(
                f"one deployment can pull from one repository of registry {registry} with credentials made here, not "
                f"from {' and '.join(map(repr, repositories))}: push these images to one repository, or give "
                "credentials with --registry-username",
                where=registry,
                next_command=f"edgewright image push IMAGE --repository {repositories[0]}",
            )
        username, password = self.endpoint.extras().mint_credentials(repositories[0], self.life_s)
        return RegistryCredential(credential_id(registry), registry, username, password)

    def push_credentials(self, registry: str) -> BasicCredentials | None:
        """For pushing to the embedded registry; None for any other."""
        from edge_containers.registry_client import BasicCredentials

        if not self.covers(registry):
            return None
        identity = self.endpoint.policy
        return BasicCredentials(str(identity.shared_access_key_name), Secret(service_token(identity)))

    def covers(self, registry: str) -> bool:
        """Whether it is the embedded registry."""
        address = self.endpoint.address
        return address is not None and registry.lower() == address.registry.lower()


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """One registry's user name and password as the user gave them: for all of its repositories."""

    registry: str
    username: str
    password: Secret

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> RegistryCredential | None:
        if registry.lower() != self.registry.lower():
            return None
        return RegistryCredential(credential_id(registry), registry, self.username, self.password)


def pull_credentials(
    images: Iterable[ImageRef], sources: Sequence[CredentialSource]
) -> tuple[RegistryCredential, ...]:
    """One credential for each registry that the images come from and that a source knows; the first source wins.

    Raises:
        NoCredentialsError: the images are in several repositories of a registry whose credentials are for one.
    """
    repositories: dict[str, dict[str, None]] = {}
    for image in images:
        if image.credentials_host is not None:  # None: an image of no registry, for which none is sent
            repositories.setdefault(image.credentials_host, {})[image.repository] = None
    made = (
        next(filter(None, (source.pull_credential(host, tuple(names)) for source in sources)), None)
        for host, names in repositories.items()
    )
    return tuple(credential for credential in made if credential is not None)


def credential_id(registry: str) -> str:
    """An id that a twin's key may be: no dots, dollars, hashes or spaces."""
    return "".join(char if char.isalnum() else "-" for char in registry).strip("-")
