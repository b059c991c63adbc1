"""`edgewright bundle create`: one file with a manifest and its images, for devices without a network.

Images come from the workspace where they are whole there, else from their registries, with the manifest's own pull
credentials; those do not go into the file. The format is `edge_containers.bundle`'s.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_containers.bundle import write_bundle
from edge_containers.image_model import INDEX_TYPES, ImageIndex, Platform, document_type
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.errors import PublishError
from edge_contracts.image_ref import DEFAULT_REGISTRY, ImageRef
from edge_contracts.manifest import DeploymentManifest
from edge_contracts.release import release_digest
from publisher.errors import UsageError
from publisher.garbage import STORE_LOCK
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace


@dataclass(frozen=True, slots=True)
class CreatedBundle:
    """What was written."""

    path: Path
    platform: Platform
    release: str
    images: tuple[str, ...]
    blobs: int
    size_bytes: int


def create_bundle(
    workspace: Workspace,
    manifest: DeploymentManifest,
    output_file: Path,
    platform: Platform | None = None,
    *,
    steps: Steps = no_steps,
) -> CreatedBundle:
    """Write the bundle; the file, mode 0600, appears whole or not at all.

    Raises:
        UsageError: the images are for several platforms, and none was chosen.
        ContainerError: an image is not to be had, is damaged, or not built for the platform.
        PublishError: the file cannot be written.
    """
    images = {str(module.image): module.image for module in manifest.modules.values()}
    store = workspace.store
    # Shared: what is pulled here is nobody's yet, and must not be collected while it is copied.
    with workspace.lock(STORE_LOCK, shared=True):
        chosen = platform or _only_platform(store, images.values())
        for image in images.values():
            _fetch(store, image, chosen, manifest, steps)
        with steps(f"writing {output_file}"):
            blobs, size_bytes = _write(output_file, store, manifest, chosen)
    workspace.audit("bundle create", str(output_file), platform=str(chosen), images=sorted(images))
    return CreatedBundle(
        output_file, chosen, release_digest(manifest.modules), tuple(sorted(images)), blobs, size_bytes
    )


def _fetch(
    store: ContentStore,
    image: ImageRef,
    platform: Platform,
    manifest: DeploymentManifest,
    steps: Steps,
) -> None:
    if image.digest is None or store.find_image(image.digest, platform) is not None:
        return
    credentials = next(
        (
            BasicCredentials(each.username, each.password)
            for each in manifest.credentials
            if image.credentials_host is not None and each.address.lower() == image.credentials_host
        ),
        None,
    )
    with (
        RegistryClient(image.registry or DEFAULT_REGISTRY, credentials=credentials) as registry,
        steps(f"pulling {image}") as progress,
    ):
        registry.pull_image(image, platform, store, progress)


def _only_platform(store: ContentStore, images: Iterable[ImageRef]) -> Platform:
    """The platform that all images of the workspace are built for, if it is one."""
    common: set[Platform] | None = None
    for image in images:
        if image.digest is None or not store.has(image.digest):
            raise UsageError(
                f"--platform must say for which platform, as image {image} is not in this workspace",
                where="--platform",
            )
        data = store.read_bytes(image.digest)
        if document_type(data, str(image.digest)) not in INDEX_TYPES:
            raise UsageError("--platform must say for which platform the images are", where="--platform")
        platforms = set(ImageIndex.from_bytes(data).platforms)
        common = platforms if common is None else common & platforms
    if common is None or len(common) != 1:
        found = " or ".join(sorted(map(str, common or ()))) or "one that all images are built for"
        raise UsageError(f"a bundle is for one platform: --platform must be {found}", where="--platform")
    return common.pop()


def _write(
    output_file: Path, store: ContentStore, manifest: DeploymentManifest, platform: Platform
) -> tuple[int, int]:
    part = output_file.with_name(f".{output_file.name}.{secrets.token_hex(4)}.part")
    try:
        # The modules' environment may hold secrets.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            blobs = write_bundle(file, store, manifest, platform)
            file.flush()
            os.fsync(file.fileno())
        part.replace(output_file)
        return len(blobs), output_file.stat().st_size
    except OSError as error:
        raise PublishError(
            f"{output_file} cannot be written: {error.strerror}", code="file", where=str(output_file)
        ) from error
    finally:
        part.unlink(missing_ok=True)
