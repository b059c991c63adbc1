"""From built images to a deployment manifest: references by digest, credentials, routes, the twin budget.

A module is given as `NAME=IMAGE`, where IMAGE is an image of the workspace (`digits`, `digits:2`: where it was last
pushed) or a reference by digest. Without routes of one's own, each module gets the two of `default_routes`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings
from publisher.credentials import CredentialSource, pull_credentials
from publisher.errors import NotFoundError, UsageError
from publisher.images import Image
from publisher.workspace import Workspace

MODULE_NAME = re.compile(r"[a-zA-Z0-9_-]+")
PUBLISH = re.compile(r"(?:(?P<host>.+):)?(?P<port>[0-9]{1,5})")
CONTAINER_PORT = 5001


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """One module as the user asks for it; `publish` is `[HOST:]PORT` on the device."""

    name: str
    image: ImageRef
    env: Mapping[str, str] = field(default_factory=dict)
    publish: str | None = None


def parse_module(workspace: Workspace, text: str) -> ModuleRequest:
    """`NAME=IMAGE`, or `IMAGE` alone for a module named as the image.

    Raises:
        UsageError: not of that form.
        NotFoundError: the image was not built, or not pushed.
    """
    name, equals, image_text = text.partition("=")
    if not equals:
        name, image_text = "", text
    image = resolve_image(workspace, image_text)
    name = name or image.repository.rpartition("/")[2]
    if not MODULE_NAME.fullmatch(name):
        raise UsageError(f"a module's name must be of [a-zA-Z0-9_-], not {name!r}, in {text!r}")
    return ModuleRequest(name, image)


def resolve_image(workspace: Workspace, text: str) -> ImageRef:
    """Where an image of the workspace was pushed to, or `text` itself when it is a reference by digest."""
    if "@" in text:
        return ImageRef.parse(text)
    if "/" in text:
        raise UsageError(
            f"an image must be one of the workspace (NAME or NAME:VERSION) or a reference by digest, not {text!r}: "
            "what a tag names may change"
        )
    image = Image(workspace, id=text)
    if image.image_location is None:
        raise NotFoundError(
            f"image {image.id} has not been pushed to a registry",
            next_command=f"edgewright image push {image.id}",
        )
    return ImageRef.parse(image.image_location)


def default_routes(modules: Sequence[str]) -> dict[str, str]:
    """Messages of the device itself to every module's input1, and every module's outputs upstream."""
    routes = {}
    for module in modules:
        routes[f"{module}-in"] = (
            "FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId)"
            f' INTO BrokeredEndpoint("/modules/{module}/inputs/input1")'
        )
        routes[f"{module}-out"] = f"FROM /messages/modules/{module}/outputs/* INTO $upstream"
    return routes


def generate(
    modules: Sequence[ModuleRequest],
    *,
    routes: Mapping[str, str] | None = None,
    sources: Sequence[CredentialSource] = (),
) -> DeploymentManifest:
    """The manifest for these modules; credentials are made for the registries that a source knows.

    Raises:
        UsageError: a module twice, or a port that is none.
        ContractError: a bad route, or over the twin budget.
        NoCredentialsError: credentials would have to cover several repositories and cannot.
    """
    names = [module.name for module in modules]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"each module may be named once, not {', '.join(map(repr, repeated))} twice")
    settings = [_settings(module) for module in modules]
    paths = default_routes(names) if routes is None else routes
    # First without credentials: none are made for a manifest that cannot be used.
    DeploymentManifest.assemble(settings, paths)
    credentials = pull_credentials([module.image for module in modules], sources)
    return DeploymentManifest.assemble(settings, paths, credentials)


def registries_without_credentials(manifest: DeploymentManifest) -> list[str]:
    """Registries of the modules' images that the manifest has no credentials for: fine if they are public."""
    known = {credential.address.lower() for credential in manifest.credentials}
    hosts = {module.image.credentials_host for module in manifest.modules.values()}
    return sorted(host for host in hosts if host is not None and host not in known)


def _settings(module: ModuleRequest) -> ModuleSettings:
    return ModuleSettings(
        name=module.name,
        image=module.image,
        env=dict(module.env),
        create_options=_create_options(module.publish),
    )


def _create_options(publish: str | None) -> dict[str, Any]:
    if publish is None:
        return {}
    found = PUBLISH.fullmatch(publish)
    if found is None or not 0 < int(found["port"]) < 65536 or not _is_ipv4(found["host"]):
        raise UsageError(
            "--publish must be [HOST:]PORT, an IPv4 address of the device and a port of 1 to 65535, "
            f"not {publish!r}",
            where="--publish",
        )
    binding = {"HostPort": str(int(found["port"]))}
    if found["host"]:
        binding["HostIp"] = found["host"]
    return {"HostConfig": {"PortBindings": {f"{CONTAINER_PORT}/tcp": [binding]}}}


def _is_ipv4(host: str | None) -> bool:
    if host is None:
        return True
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
