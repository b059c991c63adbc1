"""A pull credential, and the seam that makes one: what every source has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from publisher.credentials.forms import manifest_entry

DAY_S = 86_400
DEFAULT_LIFE_S = 90 * DAY_S
# DECISIONS A4: from here on a credential is said to be near its end, and one that is kept is made anew.
WARN_BEFORE_S = 14 * DAY_S


class NoCredentialsError(PublishError):
    """Nothing here can make credentials for that registry."""

    code = "no-credentials"


@dataclass(frozen=True, slots=True)
class PullCredential:
    """A user name and password for one registry, and what is known of them.

    Attributes:
        registry: `HOST` or `HOST:PORT`.
        source: what made it, in a word or two.
        repositories: those it may pull; empty when its source does not say.
        expires: None when it does not, or when its source does not say.
        warning: why it is more than a device should have.
    """

    registry: str
    username: str
    password: Secret
    source: str
    repositories: tuple[str, ...] = ()
    expires: datetime | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of credentials that are made on request.

    Attributes:
        life_s: how long they are to be good.
        device: the one device they are for; None for a deployment's.
        rotate: whether a new password is wanted even while the last is good.
    """

    life_s: int = DEFAULT_LIFE_S
    device: str | None = None
    rotate: bool = False


class CredentialSource(Protocol):
    """Makes pull credentials for the images of a deployment."""

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        """One for all these repositories of a registry, or None when this source does not know the registry.

        Raises:
            EdgewrightError: it knows the registry, and has none.
        """
        ...


@dataclass(frozen=True, slots=True)
class IssuedUser:
    """A user that was made here at a registry; `expires` is None when no password of its is good."""

    username: str
    repositories: tuple[str, ...]
    expires: datetime | None


class CredentialIssuer(Protocol):
    """A registry that makes users on request, and knows them afterwards."""

    def users(self, registry: str) -> tuple[IssuedUser, ...]:
        """Those made here, without their passwords."""
        ...

    def revoke(self, registry: str, username: str) -> None:
        """Take one away, so that it gets no new token.

        Raises:
            EdgewrightError: there is none of that name.
        """
        ...


def first_credential(
    sources: Iterable[CredentialSource], registry: str, repositories: tuple[str, ...]
) -> PullCredential | None:
    """That of the first source that knows the registry."""
    made = (source.pull_credential(registry, repositories) for source in sources)
    return next((credential for credential in made if credential is not None), None)


def pull_credentials(
    images: Iterable[ImageRef], sources: Sequence[CredentialSource]
) -> tuple[RegistryCredential, ...]:
    """One credential for each registry that the images come from and that a source knows; the first source wins."""
    repositories: dict[str, dict[str, None]] = {}
    for image in images:
        if image.credentials_host is not None:  # None: an image of no registry, for which none is sent
            repositories.setdefault(image.credentials_host, {})[image.repository] = None
    made = (first_credential(sources, host, tuple(names)) for host, names in repositories.items())
    return tuple(manifest_entry(credential) for credential in made if credential is not None)
