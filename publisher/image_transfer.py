"""Images on their way out of and into a workspace: to registries, into archives, and back.

`Image.push`, `Image.export` and `Image.pull` are thin: what they do is here.
"""

from __future__ import annotations

import secrets
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_containers.image_archive import add_images, platform_manifest
from edge_containers.image_model import Platform
from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageRef
from publisher.garbage import STORE_LOCK
from publisher.steps import Steps, no_steps

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials
    from publisher.images import Image


@dataclass(frozen=True, slots=True)
class PushedImage:
    """Where an image went: `location` is `registry/repository@sha256:…`."""

    location: ImageRef
    bytes_sent: int
    blobs_sent: int
    blobs_skipped: int


def push_image(
    image: Image,
    target: ImageRef,
    *,
    credentials: BasicCredentials | None = None,
    ca_file: Path | None = None,
    steps: Steps = no_steps,
) -> PushedImage:
    """Push to `target`, which names a registry and may name a tag (the version by default).

    Raises:
        RegistryError: what the registry refused; blobs already sent are found there next time.
    """
    from edge_containers.registry_client import RegistryClient
    from publisher.bases.mounts import fetcher, mounts_of
    from publisher.bases.sources import docker_logins

    workspace, registry = image.workspace, target.registry or ""
    with (
        RegistryClient(registry, credentials=credentials, ca_file=ca_file) as client,
        workspace.lock(STORE_LOCK, shared=True),
        steps(f"pushing {image.id} to {registry}") as progress,
    ):
        result = client.push_image(
            workspace.store,
            image.descriptor,
            target.repository,
            target.tag or str(image.version),
            progress,
            mount_from=mounts_of(registry),
            fetch=fetcher(workspace.store, docker_logins),
        )
    location = target.with_digest(image.digest)
    with workspace.database.transaction() as db:
        db.execute(
            "UPDATE images SET image_location = ? WHERE name = ? AND version = ?",
            (str(location), image.name, image.version),
        )
    workspace.audit("image push", image.id, location=str(location))
    return PushedImage(location, result.bytes_sent, result.blobs_sent, result.blobs_skipped)


def export_image(image: Image, output_file: Path, platform: Platform | None = None) -> int:
    """Write the image, or one platform of it, as a file for `docker load` and skopeo (`oci-archive:FILE`).

    Returns:
        Bytes written. The file appears whole or not at all.

    Raises:
        PlatformNotFoundError: the image is not built for `platform`.
        PublishError: the file cannot be written.
    """
    store, descriptor = image.workspace.store, image.descriptor
    if platform is not None:
        descriptor = platform_manifest(store, descriptor, platform)
    part = output_file.with_name(f".{output_file.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            add_images(tar, store, {image.id: descriptor})
        part.replace(output_file)
    except OSError as error:
        raise PublishError(
            f"{output_file} cannot be written: {error.strerror}", where=str(output_file)
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return output_file.stat().st_size
