"""Bundles: a deployment manifest and one platform's images in one file, for devices without a network.

The file is a plain tar, its members in this order and no others:

| member                    | what                                                                                     |
| ------------------------- | ---------------------------------------------------------------------------------------- |
| `edgewright-bundle.json`  | format 1: platform, release digest, image references, and every other member with size and sha256 |
| `deployment.json`         | the manifest, without registry credentials                                               |
| `oci-layout`, `index.json`| with the blobs an OCI image layout, which skopeo reads as `oci-archive:FILE`             |
| `blobs/sha256/HEX`        | documents and layers, sorted                                                             |

Rules for reading, since the file may come from anywhere:

- Every header is compared with what the first member announced: name, size, kind. So no name is ever used as a path, and
  links, devices, long names, extended headers and repeated members cannot be in it.
- Every byte is hashed before it counts; nothing is compressed at this level, so the file is as large as what it holds.
- Memory is bounded: documents by their limit, blobs by a chunk.
- What follows the last member must be the zeros that end a tar.

The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from edge_contracts.errors import ContractError, shown
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import DeploymentManifest
from edge_contracts.release import release_digest

from .errors import ContainerError, ImageFormatError
from .image_archive import add_bytes, blob_name, file_entry, platform_manifest
from .image_model import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    ImageManifest,
    Platform,
    canonical_json,
    document_type,
)
from .store import REF_NAME, ContentStore

INDEX_NAME = "edgewright-bundle.json"
DEPLOYMENT_NAME = "deployment.json"
LAYOUT_NAMES = ("oci-layout", "index.json")
FORMAT = 1
MAX_BLOBS = 10_000
MAX_BLOB_BYTES = 1 << 40

_BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 20
_TAIL_LIMIT_BYTES = 1 << 20
"""Zeros behind the last member: two blocks, and the filling of a tape's record."""


class BundleError(ContainerError):
    """A file that is no bundle, or not a whole one; nothing of it was kept."""

    code = "bundle"


class Reader(Protocol):
    """What a bundle is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a bundle, as its index announces it."""

    name: str
    size: int
    digest: ImageDigest


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds beside its blobs: the manifest as parsed, and which images came with it."""

    platform: Platform
    release: str
    images: tuple[ImageRef, ...]
    manifest: DeploymentManifest
    size_bytes: int


def image_members(store: ContentStore, image: ImageRef, platform: Platform) -> list[Descriptor]:
    """The documents and blobs of an image that one platform needs; the named one first.

    Raises:
        BlobNotFoundError: a part is not in the store. PlatformNotFoundError: the image is not built for `platform`.
    """
    assert image.digest is not None
    data = store.read_bytes(image.digest)
    top = Descriptor(document_type(data, str(image.digest)), image.digest, len(data))
    chosen = platform_manifest(store, top, platform)
    document = ImageManifest.from_bytes(store.read_bytes(chosen.digest), f"image manifest {chosen.digest}")
    documents = [top, chosen] if top.media_type in INDEX_TYPES else [top]
    return [*documents, *document.blobs]


def write_bundle(
    file: BinaryIO, store: ContentStore, manifest: DeploymentManifest, platform: Platform
) -> tuple[ImageDigest, ...]:
    """Write the bundle of a manifest whose images are in `store`; returns the digests of the blobs that went in.

    Raises:
        BundleError: an image is not given by digest, or a blob was damaged on disk.
        BlobNotFoundError, PlatformNotFoundError: as `image_members`.
    """
    images = _images(manifest)
    parts = {str(image): image_members(store, image, platform) for image in images}
    blobs = sorted({each.digest for members in parts.values() for each in members})
    tops = [members[0].annotated(**{REF_NAME: name}).to_dict() for name, members in sorted(parts.items())]
    documents = {
        DEPLOYMENT_NAME: canonical_json(without_credentials(manifest)),
        "oci-layout": canonical_json({"imageLayoutVersion": "1.0.0"}),
        "index.json": canonical_json({"schemaVersion": 2, "manifests": tops}),
    }
    members = [Member(name, len(data), ImageDigest.of(data)) for name, data in documents.items()]
    members += [Member(blob_name(digest), store.size(digest), digest) for digest in blobs]
    index = {
        "format": FORMAT,
        "platform": str(platform),
        "release": release_digest(manifest.modules),
        "images": sorted(parts),
        "members": [{"name": each.name, "size": each.size, "digest": str(each.digest)} for each in members],
    }
    # GNU's form of a header: it has sizes above 8 GiB without a header of its own.
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        add_bytes(tar, INDEX_NAME, canonical_json(index))
        for name, data in documents.items():
            add_bytes(tar, name, data)
        for digest in blobs:
            with store.open(digest) as blob:
                hashing = _Hashing(blob)
                tar.addfile(file_entry(blob_name(digest), store.size(digest)), hashing)
            hashing.require(digest, str(store.path(digest)))
    return tuple(blobs)


def without_credentials(manifest: DeploymentManifest) -> dict[str, Any]:
    """The manifest's document without registry credentials: its images travel with it, and a file gets lost."""
    document = manifest.dump()
    settings = document["modulesContent"]["$edgeAgent"]["properties.desired"]["runtime"]["settings"]
    settings.pop("registryCredentials", None)
    return document


def read_bundle(file: Reader, store: ContentStore, platform: Platform, *, where: str) -> Bundle:
    """Read a bundle, its blobs into `store`, where those that are there already stay.

    On failure some blobs may have been stored: the caller takes them out again.

    Raises:
        BundleError: it is none, is cut off, is damaged, holds anything else, or is for another platform.
        ContainerError: an image of it is broken, or the disk is full.
    """
    source = _Source(file, where)
    index = _read_index(source, where)
    if not platform.runs(index.platform):
        raise BundleError(f"{where} is for {index.platform}, this device is {platform}", where=where)
    store.require_space(sum(each.size for each in index.members if not store.has(each.digest)))
    documents: dict[str, bytes] = {}
    for member in index.members:
        source.expect_header(member.name, member.size)
        if member.name in _SMALL:
            documents[member.name] = source.read_document(member)
        else:
            source.store_blob(member, store)
    source.expect_end()
    manifest = _manifest(documents[DEPLOYMENT_NAME], where)
    _require_whole(index, manifest, store, platform, where)
    return Bundle(index.platform, index.release, index.images, manifest, source.read_bytes)


_SMALL = (DEPLOYMENT_NAME, *LAYOUT_NAMES)


@dataclass(frozen=True, slots=True)
class _Index:
    platform: Platform
    release: str
    images: tuple[ImageRef, ...]
    members: tuple[Member, ...]


def _images(manifest: DeploymentManifest) -> list[ImageRef]:
    images = {str(module.image): module.image for module in manifest.modules.values()}
    for text, image in images.items():
        if not image.is_pinned:
            raise BundleError(
                f"images of a bundle must be given by digest, not {shown(text)}",
                where=text,
                next_command="edgewright manifest generate IMAGE --output-file FILE",
            )
    return [images[text] for text in sorted(images)]


def _read_index(source: _Source, where: str) -> _Index:
    size = source.expect_header(INDEX_NAME, None)
    data = source.read_exactly(size)
    source.skip_padding(size)
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise BundleError(
                f"{where}: format must be {FORMAT}, not {shown(document['format'])}: a newer edgewright wrote it",
                where=where,
            )
        index = _Index(
            Platform.parse(document["platform"]),
            str(document["release"]),
            tuple(ImageRef.parse(text) for text in document["images"]),
            tuple(_member(entry) for entry in document["members"]),
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        ContractError,
        ImageFormatError,
    ) as error:
        raise BundleError(f"{where}: {INDEX_NAME} is not as it must be: {error}", where=where) from error
    _check_members(index.members, where)
    return index


def _member(entry: Mapping[str, Any]) -> Member:
    size = entry["size"]
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_BYTES:
        raise ValueError(f"size must be 0 to {MAX_BLOB_BYTES}, not {size!r:.40}")
    return Member(str(entry["name"]), size, ImageDigest.parse(entry["digest"]))


def _check_members(members: Sequence[Member], where: str) -> None:
    """The members a bundle has are known but for its blobs, and those are named by their digests."""
    names = [each.name for each in members]
    blobs = members[len(_SMALL) :]
    if tuple(names[: len(_SMALL)]) != _SMALL or len(blobs) > MAX_BLOBS or len(set(names)) != len(names):
        expected = f"{', '.join(_SMALL)} and at most {MAX_BLOBS} blobs, each once"
        raise BundleError(f"{where}: members must be {expected}, not {shown(names)}", where=where)
    for blob in blobs:
        if blob.digest.algorithm != "sha256" or blob.name != blob_name(blob.digest):
            raise BundleError(
                f"{where}: member {shown(blob.name)} must be named by its digest {blob.digest}", where=where
            )
    for small in members[: len(_SMALL)]:
        if small.size > MAX_DOCUMENT_BYTES:
            raise BundleError(
                f"{where}: {small.name} must be at most {MAX_DOCUMENT_BYTES} bytes, not {small.size}",
                where=where,
            )


def _manifest(data: bytes, where: str) -> DeploymentManifest:
    try:
        return DeploymentManifest.parse(data)
    except ContractError as error:
        raise BundleError(f"{where}: {DEPLOYMENT_NAME}: {error.message}", where=where) from error


def _require_whole(
    index: _Index, manifest: DeploymentManifest, store: ContentStore, platform: Platform, where: str
) -> None:
    """The bundle is of this manifest, and every image of it is whole."""
    if release_digest(manifest.modules) != index.release:
        raise BundleError(f"{where}: {DEPLOYMENT_NAME} is not the release {index.release}", where=where)
    images = _images(manifest)
    if sorted(map(str, index.images)) != [str(image) for image in images]:
        raise BundleError(f"{where}: its index names other images than {DEPLOYMENT_NAME}", where=where)
    for image in images:
        assert image.digest is not None
        if store.find_image(image.digest, platform) is None:
            raise BundleError(f"{where} lacks blobs of image {image}", where=where)


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: Reader) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def require(self, digest: ImageDigest, where: str) -> None:
        """Refuse bytes that were not those of `digest`."""
        if self._hash.hexdigest() != digest.hex:
            raise BundleError(f"{where} was damaged on disk: it is not {digest}", where=where)


class _Source:
    """A tar read strictly from front to back."""

    def __init__(self, file: Reader, where: str) -> None:
        self._file = file
        self._where = where
        self.read_bytes = 0

    def expect_header(self, name: str, size: int | None) -> int:
        """Read a header, which must be of the file `name` with `size` bytes (None: of a document); returns the size."""
        block = self.read_exactly(_BLOCK_BYTES)
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise self._refuse(
                f"has no tar header where {name} must begin: it is no bundle, or cut off"
            ) from error
        if entry.type != tarfile.REGTYPE or entry.name != name:
            raise self._refuse(f"has {shown(entry.name)} where the file {name} must be")
        if size is None and not 0 <= entry.size <= MAX_DOCUMENT_BYTES:
            raise self._refuse(f"has {name} of {entry.size} bytes, at most {MAX_DOCUMENT_BYTES} fit")
        if size is not None and entry.size != size:
            raise self._refuse(f"has {name} with {entry.size} bytes, its index says {size}")
        return entry.size

    def read_document(self, member: Member) -> bytes:
        """A small member, verified."""
        data = self.read_exactly(member.size)
        if ImageDigest.of(data) != member.digest:
            raise self._refuse(f"has {member.name} whose content is not {member.digest}")
        self.skip_padding(member.size)
        return data

    def store_blob(self, member: Member, store: ContentStore) -> None:
        """A blob into the store, verified; one that is there already is verified, too."""
        with store.writer(expected=member.digest, size=member.size, source=self._where) as writer:
            left = member.size
            while left:
                chunk = self.read_exactly(min(left, _CHUNK_BYTES))
                writer.write(chunk)
                left -= len(chunk)
        self.skip_padding(member.size)

    def skip_padding(self, size: int) -> None:
        """Zeros up to the next block."""
        if any(self.read_exactly(-size % _BLOCK_BYTES)):
            raise self._refuse("has bytes between its files")

    def expect_end(self) -> None:
        """Two blocks of zeros, then nothing but zeros."""
        tail = self.read_exactly(2 * _BLOCK_BYTES)
        while len(tail) <= _TAIL_LIMIT_BYTES and (more := self._file.read(_CHUNK_BYTES)):
            tail += more
        self.read_bytes += len(tail) - 2 * _BLOCK_BYTES
        if any(tail) or len(tail) > _TAIL_LIMIT_BYTES:
            raise self._refuse("goes on behind its last file")

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes, which are at most a document's or a chunk's."""
        pieces: list[bytes] = []
        left = size
        while left:
            piece = self._file.read(left)
            if not piece:
                raise self._refuse(f"ends after {self.read_bytes} bytes: it was not copied whole")
            pieces.append(piece)
            left -= len(piece)
            self.read_bytes += len(piece)
        return b"".join(pieces)

    def _refuse(self, problem: str) -> BundleError:
        return BundleError(f"{self._where} {problem}", where=self._where)
