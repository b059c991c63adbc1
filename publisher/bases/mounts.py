"""Layers of a base that stayed in its registry: mounted there, or brought from there when another registry needs them."""

from __future__ import annotations

from collections.abc import Callable

from edge_containers.errors import BlobNotFoundError
from edge_containers.image_model import Descriptor
from edge_containers.registry_client import MountSource, Progress, RegistryClient
from edge_containers.store import ContentStore
from publisher.bases.sources import SOURCE_ANNOTATION, BaseCredentials


def mounts_of(registry: str) -> MountSource:
    """Which repository of `registry` a base's layer may be taken over from."""

    def source(blob: Descriptor) -> str | None:
        place, _, repository = blob.annotations.get(SOURCE_ANNOTATION, "").partition("/")
        return repository if place.lower() == registry.lower() else None

    return source


def fetcher(
    store: ContentStore, credentials: BaseCredentials, progress: Progress | None = None
) -> Callable[[Descriptor], None]:
    """Brings a layer that stayed in its registry into `store`.

    Raises:
        BlobNotFoundError: the layer names no registry: it should have been here.
    """

    def fetch(blob: Descriptor) -> None:
        registry, _, repository = blob.annotations.get(SOURCE_ANNOTATION, "").partition("/")
        if not repository:
            raise BlobNotFoundError(f"blob {blob.digest} is not in the content store {store.root}")
        with RegistryClient(registry, credentials=credentials(registry)) as client:
            client.pull_blob(repository, blob, store, progress)

    return fetch
