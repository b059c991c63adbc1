"""From built images to a deployment manifest: references by digest, credentials, routes, the twin budget.

A module is given as `NAME=IMAGE`, where IMAGE is an image of the workspace (`digits`, `digits:2`: where it was last
pushed) or a reference by digest. Without routes of one's own, each module gets the two of `default_routes`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings
from publisher.credentials import CredentialSource, pull_credentials
from publisher.errors import NotFoundError, UsageError
from publisher.images import Image
from publisher.workspace import Workspace

MODULE_NAME = re.compile(r"[a-zA-Z0-9_-]+")
PUBLISH = re.compile(r"(?:(?P<host>[0-9.]+):)?(?P<port>[0-9]{1,5})")
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
        UsageError: not of that form. NotFoundError: the image was not built, or not pushed.
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
    sources: tuple[CredentialSource, ...] = (),
) -> DeploymentManifest:
    """The manifest for these modules; credentials are made for the registries that a source knows.

    Raises:
        ContractError: a bad route, or over the twin budget.
    """
    names = [module.name for module in modules]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"each module may be named once, not {', '.join(map(repr, repeated))} twice")
    manifest = DeploymentManifest.assemble(
        modules=[_settings(module) for module in modules],
        routes=default_routes(names) if routes is None else routes,
    )
    manifest.predicted_reported_size_bytes()
    # Credentials last: nothing is made for a manifest that cannot be used.
    credentials = pull_credentials([module.image for module in modules], sources)
    return DeploymentManifest.assemble(
        modules=[_settings(module) for module in modules],
        routes=default_routes(names) if routes is None else routes,
        credentials=credentials,
    )


def write_manifest(path: Path, text: str) -> None:
    """Write by rename, readable by the owner alone: a manifest may hold credentials."""
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)


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
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UsageError(f"--publish must be [HOST:]PORT with a port of 1 to 65535, not {publish!r}")
    binding = {"HostPort": found["port"]}
    if found["host"]:
        binding["HostIp"] = found["host"]
    return {"HostConfig": {"PortBindings": {f"{CONTAINER_PORT}/tcp": [binding]}}}
