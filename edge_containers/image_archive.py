"""Images as one tar file that OCI tools and `docker load` both read.

Rules:

- The tar is an OCI image layout (`oci-layout`, `index.json`, `blobs/…`), which skopeo takes as `oci-archive:FILE`.
- Beside it lies Docker's own `manifest.json`, whose Config and Layers point at the same blobs: Docker before 25 cannot
  load a bare layout. Docker knows one platform for each name, so an index goes in with one: this machine's, else its first.
- Names are sorted and times are zero: the same images give the same bytes.

    with path.open("xb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
        add_images(tar, store, {"digits:1": platform_manifest(store, index, Platform.parse("linux/arm64"))})
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from edge_contracts.image_ref import ImageDigest

from .image_model import (
    INDEX_TYPES,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
    canonical_json,
    read_config,
    select_platform,
)
from .store import REF_NAME, ContentStore


def add_images(tar: tarfile.TarFile, store: ContentStore, images: Mapping[str, Descriptor]) -> None:
    """Write named indexes or manifests, each blob once; see the rules above.

    Raises:
        BlobNotFoundError: a part of an image is not in the store.
        DigestMismatchError: a document was damaged on disk.
    """
    named = [image.annotated(**{REF_NAME: name}).to_dict() for name, image in sorted(images.items())]
    digests = sorted({each.digest for image in images.values() for each in image_parts(store, image)})
    add_bytes(tar, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
    add_bytes(tar, "index.json", canonical_json({"schemaVersion": 2, "manifests": named}))
    add_bytes(tar, "manifest.json", _docker_manifest(store, images))
    for digest in digests:
        with store.open(digest) as blob:
            tar.addfile(file_entry(blob_name(digest), store.size(digest)), blob)


def image_parts(store: ContentStore, image: Descriptor) -> list[Descriptor]:
    """An index or manifest and everything it is made of, each once, the whole before its parts."""
    found = {image.digest: image}
    for manifest in manifests_of(store, image):
        found.setdefault(manifest.digest, manifest)
        for blob in read_manifest(store, manifest).blobs:
            found.setdefault(blob.digest, blob)
    return list(found.values())


def manifests_of(store: ContentStore, image: Descriptor) -> tuple[Descriptor, ...]:
    """The manifests of an index; a manifest is its own."""
    if image.media_type not in INDEX_TYPES:
        return (image,)
    return ImageIndex.from_bytes(store.read_bytes(image.digest), f"image index {image.digest}").manifests


def read_manifest(store: ContentStore, manifest: Descriptor) -> ImageManifest:
    """A stored manifest."""
    return ImageManifest.from_bytes(store.read_bytes(manifest.digest), f"image manifest {manifest.digest}")


def platform_manifest(store: ContentStore, image: Descriptor, platform: Platform) -> Descriptor:
    """The manifest of an index, or the manifest itself, that runs on `platform`.

    Raises:
        PlatformNotFoundError: the image is not built for it; the message lists those it has.
    """
    if image.media_type in INDEX_TYPES:
        index = ImageIndex.from_bytes(store.read_bytes(image.digest), f"image index {image.digest}")
        return select_platform(index, platform)
    manifest = read_manifest(store, image)
    read_config(store.read_bytes(manifest.config.digest), manifest, platform)
    return image


def read_platform(store: ContentStore, manifest: Descriptor) -> Platform:
    """What a stored manifest's config says it runs on."""
    config = read_manifest(store, manifest).config
    return ImageConfig.from_bytes(store.read_bytes(config.digest), f"image config {config.digest}").platform


def _docker_manifest(store: ContentStore, images: Mapping[str, Descriptor]) -> bytes:
    entries: list[dict[str, Any]] = []
    for name, image in sorted(images.items()):
        manifest = read_manifest(store, _docker_choice(manifests_of(store, image)))
        layers = [blob_name(layer.digest) for layer in manifest.layers]
        config = blob_name(manifest.config.digest)
        entries.append({"Config": config, "RepoTags": [name], "Layers": layers})
    return json.dumps(entries, sort_keys=True).encode()


def _docker_choice(manifests: Iterable[Descriptor]) -> Descriptor:
    listed = list(manifests)
    host = Platform.host()
    fitting = (each for each in listed if each.platform is not None and host.runs(each.platform))
    return next(fitting, listed[0])


def blob_name(digest: ImageDigest) -> str:
    """Where a blob lies in an OCI image layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Write a small file."""
    tar.addfile(file_entry(name, len(data)), io.BytesIO(data))


def file_entry(name: str, size: int) -> tarfile.TarInfo:
    """The header of a file, the same at any time and for any user."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry
