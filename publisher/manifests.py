"""From built images to a deployment manifest: references by digest, credentials, routes, the twin budget.

A module is given as `NAME=IMAGE`, where IMAGE is an image of the workspace (`digits`, `digits:2`: where it was last
pushed), a reference by digest, or one by tag, which is resolved at its registry. Without routes of one's own, each
module gets the two of `default_routes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_contracts.image_ref import DEFAULT_REGISTRY, ImageRef
from edge_contracts.layers import Layer
from edge_contracts.manifest import (
    EDGE_AGENT_IMAGE,
    EDGE_HUB_IMAGE,
    STORE_AND_FORWARD_TTL_S,
    DeploymentManifest,
)
from edge_contracts.module_settings import (
    STARTUP_ORDER_MAXIMUM,
    DesiredStatus,
    ImagePullPolicy,
    ModuleSettings,
    RestartPolicy,
)
from publisher.credentials import CredentialSource, pull_credentials
from publisher.errors import NotFoundError, UsageError
from publisher.images import Image
from publisher.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from edge_containers.registry_client import BasicCredentials

MODULE_NAME = re.compile(r"[a-zA-Z0-9_-]+")
DEFAULT_TAG = "latest"
"""What IoT Edge takes for a reference without a tag."""

Login = Callable[[str], "BasicCredentials | None"]
"""What to sign in with at a registry; None for nothing."""


def no_login(registry: str) -> None:
    """For registries that anybody may read."""


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """One module as the user asks for it; `desired` is its own twin's desired properties, None leaves them alone."""

    name: str
    image: ImageRef
    env: Mapping[str, str] = field(default_factory=dict)
    create_options: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    status: DesiredStatus = DesiredStatus.RUNNING
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    startup_order: int = STARTUP_ORDER_MAXIMUM
    image_pull_policy: ImagePullPolicy = ImagePullPolicy.ON_CREATE
    desired: Mapping[str, Any] | None = None

    def settings(self) -> ModuleSettings:
        """The module of a manifest."""
        return ModuleSettings(
            name=self.name,
            image=self.image,
            version=self.version,
            status=self.status,
            restart_policy=self.restart_policy,
            startup_order=self.startup_order,
            image_pull_policy=self.image_pull_policy,
            env=dict(self.env),
            create_options=dict(self.create_options),
            desired=None if self.desired is None else dict(self.desired),
        )


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """What a manifest says beside modules and routes; our own agent takes the system modules' images as names only."""

    edge_agent_image: str = EDGE_AGENT_IMAGE
    edge_hub_image: str = EDGE_HUB_IMAGE
    store_and_forward_ttl_s: int = STORE_AND_FORWARD_TTL_S


def parse_module(workspace: Workspace, text: str, *, unpushed: bool = False) -> ModuleRequest:
    """`NAME=IMAGE`, or `IMAGE` alone for a module named as the image; `unpushed` as `resolve_image`.

    Raises:
        UsageError: not of that form.
        NotFoundError: the image was not built, or not pushed.
    """
    name, equals, image_text = text.partition("=")
    if not equals:
        name, image_text = "", text
    image = resolve_image(workspace, image_text, unpushed=unpushed)
    name = name or image.repository.rpartition("/")[2]
    if not MODULE_NAME.fullmatch(name):
        raise UsageError(f"a module's name must be of [a-zA-Z0-9_-], not {name!r}, in {text!r}")
    return ModuleRequest(name, image)


def resolve_image(workspace: Workspace, text: str, *, unpushed: bool = False) -> ImageRef:
    """Where an image of the workspace was pushed to, or the reference itself: one by tag is still to be `pin`ned.

    Args:
        unpushed: take an image that no registry has by its name and digest alone, for a bundle.
    """
    if "@" in text or "/" in text:
        return ImageRef.parse(text)
    image = Image(workspace, id=text)
    if image.image_location is None and unpushed:
        return ImageRef(None, image.name, None, image.digest)
    if image.image_location is None:
        raise NotFoundError(
            f"image {image.id} has not been pushed to a registry",
            next_command=f"edgewright image push {image.id}",
        )
    return ImageRef.parse(image.image_location)


def pin(image: ImageRef, login: Login = no_login, *, ca_file: Path | None = None) -> ImageRef:
    """The reference by digest that `image` means at its registry now.

    Raises:
        NotFoundError: the registry has no such tag.
        ContainerError: it refuses or does not answer.
    """
    from edge_containers.registry_client import RegistryClient

    if image.is_pinned:
        return image
    host, tag = image.registry or DEFAULT_REGISTRY, image.tag or DEFAULT_TAG
    with RegistryClient(host, credentials=login(host), ca_file=ca_file) as registry:
        found = registry.head_manifest(image.repository, tag)
    if found is None:
        raise NotFoundError(f"registry {host} has no image {image.repository}:{tag}", where=str(image))
    return image.with_digest(found.digest)


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
    routes: Mapping[str, str | Mapping[str, Any]] | None = None,
    sources: Sequence[CredentialSource] = (),
    system: SystemSettings = SystemSettings(),
) -> DeploymentManifest:
    """The manifest for these modules; credentials are made for the registries that a source knows.

    Raises:
        UsageError: a module twice.
        ContractError: a bad route, or over the twin budget.
        EdgewrightError: a source knows a registry and cannot make credentials for it.
    """
    settings, paths = _checked_modules(modules), routes
    if paths is None:
        paths = default_routes([module.name for module in modules])
    options: dict[str, Any] = {
        "store_and_forward_ttl_s": system.store_and_forward_ttl_s,
        "edge_agent_image": system.edge_agent_image,
        "edge_hub_image": system.edge_hub_image,
    }
    # First without credentials: none are made for a manifest that cannot be used.
    DeploymentManifest.assemble(settings, paths, **options)
    credentials = pull_credentials([module.image for module in modules], sources)
    return DeploymentManifest.assemble(settings, paths, credentials, **options)


def generate_layer(
    modules: Sequence[ModuleRequest],
    *,
    routes: Mapping[str, str | Mapping[str, Any]] | None = None,
    sources: Sequence[CredentialSource] = (),
) -> Layer:
    """The same as a layer over a base deployment; see `generate`."""
    settings, paths = _checked_modules(modules), routes
    if paths is None:
        paths = default_routes([module.name for module in modules])
    Layer.assemble(settings, paths)
    return Layer.assemble(settings, paths, pull_credentials([module.image for module in modules], sources))


def _checked_modules(modules: Sequence[ModuleRequest]) -> list[ModuleSettings]:
    names = [module.name for module in modules]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"each module may be named once, not {', '.join(map(repr, repeated))} twice")
    return [module.settings() for module in modules]


def registries_without_credentials(manifest: DeploymentManifest | Layer) -> list[str]:
    """Registries of the modules' images that the manifest has no credentials for: fine if they are public."""
    known = {credential.address.lower() for credential in manifest.credentials}
    hosts = {module.image.credentials_host for module in manifest.modules.values()}
    return sorted(host for host in hosts if host is not None and host not in known)
