"""The workstation's side: workspace, models, images, credentials, manifests.

from publisher import ContainerImage, Image, Model, Workspace
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publisher.images import ContainerImage, Image, IotContainerImage
    from publisher.model_details import ResourceConfiguration
    from publisher.models import Model
    from publisher.workspace import Workspace

__all__ = ["ContainerImage", "Image", "IotContainerImage", "Model", "ResourceConfiguration", "Workspace"]

_MODULES = {
    "ContainerImage": "publisher.images",
    "Image": "publisher.images",
    "IotContainerImage": "publisher.images",
    "Model": "publisher.models",
    "ResourceConfiguration": "publisher.model_details",
    "Workspace": "publisher.workspace",
}


def __getattr__(name: str) -> object:
    # Imported when first asked for: `edgewright --help` imports this package and needs none of them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
