"""Which sources are asked, and in what order: the same for every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from edge_contracts.image_ref import ImageRef
from publisher.credentials.acr import AcrAdmin, AcrRegistries, AcrTokens
from publisher.credentials.docker_config import DockerConfig
from publisher.credentials.embedded import EmbeddedCredentials
from publisher.credentials.ledger import Recorded
from publisher.credentials.source import (
    DEFAULT_LIFE_S,
    CredentialIssuer,
    CredentialSource,
    NoCredentialsError,
    PullCredential,
    Wish,
    first_credential,
)
from publisher.credentials.static import StaticCredentials
from publisher.embedded_hub import NoHubError, hub_endpoint
from publisher.errors import UsageError
from publisher.images import Image
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


def registry_credentials(
    workspace: Workspace,
    registry: str,
    repositories: Sequence[str] | None = None,
    *,
    source: Source | str = Source.AUTO,
    device: str | None = None,
    life_s: int = DEFAULT_LIFE_S,
    rotate: bool = False,
) -> PullCredential:
    """Credentials that devices pull these repositories with; `edgewright registry credentials` in Python.

    Args:
        registry: `HOST` or `HOST:PORT`.
        repositories: those of all images of the workspace by default.
        source: a `Source` by name.
        device: the one device they are for; None for a deployment's.
        life_s: how long they are to be good, where they are made on request.
        rotate: a new password even while the last is good.

    Raises:
        UsageError: no repository is named, and there is no image; or no such source.
        NoCredentialsError: no source knows the registry.
        EdgewrightError: one knows it, and could not make any.
    """
    if source not in set(Source):
        raise UsageError(f"source must be one of {', '.join(Source)}, not {source!r}", where="source")
    wanted, wish = Source(source), Wish(life_s=life_s, device=device, rotate=rotate)
    names = _repositories(workspace, registry, repositories)
    made = first_credential(device_sources(workspace, wanted, wish), registry, names)
    if made is None:
        raise _none(registry, wanted)
    return made


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


def _repositories(workspace: Workspace, registry: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Those that are named, else that of every image here, as `image push` names it."""
    names = given or [image.name for image in Image.list(workspace)]
    if not names:
        raise UsageError(
            "there is no image here whose repository could be meant; name one with --repository",
            where="--repository",
        )
    return tuple(sorted({ImageRef.parse(f"{registry}/{name}").repository for name in names}))


def _none(registry: str, source: Source) -> NoCredentialsError:
    if source is not Source.AUTO:
        text = f"source {source} has no credentials for registry {registry!r}"
        return NoCredentialsError(text, where=registry)
    return NoCredentialsError(
        f"nothing here makes credentials for registry {registry!r}: it is not the embedded one, registry.logins does "
        "not name it, and [azure] does not say where it is",
        where=registry,
        next_command=f"edgewright registry credentials {registry} --source docker",
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
