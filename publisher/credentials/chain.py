"""Which sources are asked, and in what order: the same for every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from publisher.credentials.docker_config import DockerConfig
from publisher.credentials.embedded import EmbeddedCredentials
from publisher.credentials.source import (
    DEFAULT_LIFE_S,
    CredentialIssuer,
    CredentialSource,
    NoCredentialsError,
)
from publisher.credentials.static import StaticCredentials
from publisher.embedded_hub import NoHubError, hub_endpoint
from publisher.workspace import Workspace

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials


class Source(StrEnum):
    """A source by name."""

    AUTO = "auto"
    STATIC = "static"
    EMBEDDED = "embedded"
    DOCKER = "docker"


AUTO = (Source.STATIC, Source.EMBEDDED)
"""What is asked for devices when no source is named: none of these is a person's own login or an administrator."""


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


def credentials_for(
    registry: str, *, workspace: Workspace | None = None, environ: Mapping[str, str] | None = None
) -> BasicCredentials | None:
    """What to push to a registry and pull from it with on this machine; None when nothing here knows it.

    In order: `registry.logins` of the workspace, the embedded registry, Docker's logins. An identity token of Docker's
    comes as the password of user `<token>`.

    Raises:
        ConfigError: `registry.logins` names a password that is not there.
        DockerConfigError: Docker's configuration, or a helper it names, is broken.
    """
    from edge_containers.registry_client import BasicCredentials

    environ = os.environ if environ is None else environ
    if workspace is not None:
        login = _static(workspace, environ).login(registry)
        if login is not None:
            return BasicCredentials(login.username, login.password)
        embedded = _embedded(workspace, Wish())
        if embedded is not None and embedded.covers(registry):
            return embedded.push_credentials(registry)
    return DockerConfig.of(environ).login(registry)


def device_sources(
    workspace: Workspace, source: Source = Source.AUTO, wish: Wish | None = None
) -> tuple[CredentialSource, ...]:
    """The sources of devices' credentials, in the order in which they are asked."""
    wanted = AUTO if source is Source.AUTO else (source,)
    made = (_MAKERS[each](workspace, wish or Wish()) for each in wanted)
    return tuple(each for each in made if each is not None)


def issuer_of(workspace: Workspace, registry: str) -> CredentialIssuer:
    """Who makes, lists and takes back the users of a registry.

    Raises:
        NoCredentialsError: nobody here does for that registry.
    """
    embedded = _embedded(workspace, Wish())
    if embedded is not None and embedded.covers(registry):
        return embedded
    raise NoCredentialsError(
        f"users of registry {registry!r} are not made here, so they can be neither listed nor revoked",
        where=registry,
    )


def _static(workspace: Workspace, environ: Mapping[str, str]) -> StaticCredentials:
    return StaticCredentials(workspace.settings.registry.logins, workspace.root, environ)


def _embedded(workspace: Workspace, wish: Wish) -> EmbeddedCredentials | None:
    try:
        return EmbeddedCredentials(hub_endpoint(workspace), wish.life_s)
    except NoHubError:
        return None


_MAKERS: Mapping[Source, Callable[[Workspace, Wish], CredentialSource | None]] = {
    Source.STATIC: lambda workspace, _: _static(workspace, os.environ),
    Source.EMBEDDED: _embedded,
    Source.DOCKER: lambda _, __: DockerConfig.of(os.environ),
}
