"""Registry credentials: what images are pushed with, and what devices pull them with.

Rules (DECISIONS A4):
- A device's credentials may pull, one repository, for a limited time; they are made per deployment and can be revoked.
- The embedded registry makes them on request. For any other registry they are given by the user and passed on as they
  are, which is said.
- Pushing to the embedded registry uses the hub's own policy: a token of an hour as password, nothing to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString
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

    def pull_credential(self, image: ImageRef) -> RegistryCredential | None:
        """For the image's registry and repository, or None when this source does not know the registry."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedCredentials:
    """Credentials of the embedded registry, made through the hub."""

    endpoint: HubEndpoint
    life_s: int = DEFAULT_LIFE_S

    def pull_credential(self, image: ImageRef) -> RegistryCredential | None:
        if self.endpoint.address is None or image.credentials_host != self.endpoint.address.registry:
            return None
        username, password = self.endpoint.extras().mint_credentials(image.repository, self.life_s)
        return RegistryCredential(_credential_id(image), image.credentials_host, username, password)

    def push_credentials(self, registry: str) -> BasicCredentials | None:
        """For pushing to the embedded registry; None for any other."""
        from edge_containers.registry_client import BasicCredentials

        if self.endpoint.address is None or registry != self.endpoint.address.registry:
            return None
        identity = ConnectionString.parse(self.endpoint.connection_string.reveal())
        return BasicCredentials(str(identity.shared_access_key_name), Secret(service_token(identity)))


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """One registry's user name and password as the user gave them."""

    registry: str
    username: str
    password: Callable[[], Secret]

    def pull_credential(self, image: ImageRef) -> RegistryCredential | None:
        if image.credentials_host.lower() != self.registry.lower():
            return None
        return RegistryCredential(
            _credential_id(image), image.credentials_host, self.username, self.password()
        )


def pull_credentials(
    images: list[ImageRef], sources: tuple[CredentialSource, ...]
) -> tuple[RegistryCredential, ...]:
    """One credential per registry that the images come from: the runtime matches them by registry alone.

    Raises:
        NoCredentialsError: the images of one registry that scopes by repository are in several repositories.
    """
    found: dict[str, RegistryCredential] = {}
    repositories: dict[str, str] = {}
    for image in images:
        host = image.credentials_host
        if host in found:
            if repositories[host] != image.repository:
                raise NoCredentialsError(
                    f"one deployment can pull from one repository of registry {host} with credentials made here, "
                    f"not from {repositories[host]!r} and {image.repository!r}: push both images to one repository "
                    "(edgewright image push --repository), or give credentials with --username"
                )
            continue
        for source in sources:
            credential = source.pull_credential(image)
            if credential is not None:
                found[host], repositories[host] = credential, image.repository
                break
    return tuple(found.values())


def _credential_id(image: ImageRef) -> str:
    """An id that a twin's key may be: no dots, dollars, hashes or spaces."""
    return "".join(char if char.isalnum() else "-" for char in image.credentials_host).strip("-")
