"""Which sources are asked, and in what order: the same for every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from publisher.credentials.acr import AcrAdmin, AcrRegistries, AcrTokens
from publisher.credentials.docker_config import DockerConfig
from publisher.credentials.embedded import EmbeddedCredentials
from publisher.credentials.ledger import Recorded
from publisher.credentials.source import (
    CredentialIssuer,
    CredentialSource,
    NoCredentialsError,
    Wish,
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
    ACR = "acr"
    ACR_ADMIN = "acr-admin"
    DOCKER = "docker"


AUTO = (Source.STATIC, Source.EMBEDDED, Source.ACR)
"""What is asked for devices when no source is named: none of these is a person's own login or an administrator."""


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
        embedded = embedded_credentials(workspace)
        if embedded is not None and embedded.covers(registry):
            return embedded.push_credentials(registry)
    return DockerConfig.of(environ).login(registry)


def device_sources(
    workspace: Workspace, source: Source = Source.AUTO, wish: Wish | None = None
) -> tuple[CredentialSource, ...]:
    """The sources of devices' credentials, in the order in which they are asked; what they make is noted."""
    is_auto, wish = source is Source.AUTO, wish or Wish()
    made = (_MAKERS[each](workspace, wish, is_auto) for each in (AUTO if is_auto else (source,)))
    return tuple(Recorded(each, workspace, wish.device) for each in made if each is not None)


def issuer_of(workspace: Workspace, registry: str) -> CredentialIssuer:
    """Who makes, lists and takes back the users of a registry.

    Raises:
        NoCredentialsError: nobody here does for that registry.
    """
    embedded = embedded_credentials(workspace)
    if embedded is not None and embedded.covers(registry):
        return embedded
    acr = AcrTokens(_acr(workspace), workspace)
    if workspace.settings.azure.subscription_id:
        return acr
    raise NoCredentialsError(
        f"users of registry {registry!r} are not made here, so they can be neither listed nor revoked",
        where=registry,
    )


def _static(workspace: Workspace, environ: Mapping[str, str]) -> StaticCredentials:
    return StaticCredentials(workspace.settings.registry.logins, workspace.root, environ)


def embedded_credentials(workspace: Workspace, wish: Wish | None = None) -> EmbeddedCredentials | None:
    """Those of the embedded registry; None when the workspace has no hub."""
    try:
        return EmbeddedCredentials(hub_endpoint(workspace), (wish or Wish()).life_s)
    except NoHubError:
        return None


def _acr(workspace: Workspace) -> AcrRegistries:
    return AcrRegistries(workspace.settings.azure, workspace.root)


def _acr_tokens(workspace: Workspace, wish: Wish, is_auto: bool) -> AcrTokens | None:
    """Asked unnamed, only where `[azure]` says in which subscription, and for hosts that are Azure's by name."""
    if is_auto and not workspace.settings.azure.subscription_id:
        return None
    return AcrTokens(_acr(workspace), workspace, wish, only_azure_hosts=is_auto)


_MAKERS: Mapping[Source, Callable[[Workspace, Wish, bool], CredentialSource | None]] = {
    Source.STATIC: lambda workspace, wish, is_auto: _static(workspace, os.environ),
    Source.EMBEDDED: lambda workspace, wish, is_auto: embedded_credentials(workspace, wish),
    Source.ACR: _acr_tokens,
    Source.ACR_ADMIN: lambda workspace, wish, is_auto: AcrAdmin(_acr(workspace)),
    Source.DOCKER: lambda workspace, wish, is_auto: DockerConfig.of(os.environ),
}
