"""Small images for tests of stores, registries and runtimes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping

from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
)
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest

PLATFORMS = (Platform("linux", "amd64"), Platform("linux", "arm64"))


def make_tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files, the same bytes each time."""
    return tar_of(_file(name, content) for name, content in sorted(files.items()))


def tar_of(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of entries as they are, harmless or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def put_layer(store: ContentStore, raw: bytes) -> tuple[Descriptor, ImageDigest]:
    """Store a tar gzip-compressed; its descriptor and diff_id."""
    blob = store.put_bytes(gzip.compress(raw, compresslevel=1, mtime=0))
    return blob.describe(OCI_LAYER_GZIP), ImageDigest.of(raw)


def put_image(
    store: ContentStore, layers: Mapping[str, bytes], platforms: Iterable[Platform] = PLATFORMS
) -> Descriptor:
    """Store an index whose platforms share layers of one file each, `layers` being name → content."""
    put = [put_layer(store, make_tar({name: content})) for name, content in layers.items()]
    manifests = []
    for platform in platforms:
        config = ImageConfig(platform, tuple(diff_id for _, diff_id in put), {"edgewright.base": "none"})
        config_blob = store.put_bytes(config.to_bytes()).describe(OCI_CONFIG)
        manifest = ImageManifest(config_blob, tuple(layer for layer, _ in put))
        manifests.append(store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=platform))
    return store.put_bytes(ImageIndex(tuple(manifests)).to_bytes()).describe(OCI_INDEX)


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content
