"""Where a base comes from: made here, on disk, in a registry; each brings its layers into a store, verified."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from edge_containers.errors import PlatformNotFoundError
from edge_containers.image_model import (
    DOCKER_LAYER_GZIP,
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    OCI_LAYER_GZIP,
    OCI_LAYER_TAR,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
    document_type,
    read_config,
    select_platform,
)
from edge_containers.store import REF_NAME, ContentStore
from edge_contracts.errors import ContainerError
from edge_contracts.image_ref import ImageDigest, ImageRef
from publisher.errors import BaseImageError
from publisher.steps import Steps, no_steps

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials

BaseCredentials = Callable[[str], "BasicCredentials | None"]
"""A registry's credentials, None for none."""

SOURCE_ANNOTATION = "edgewright.source"
"""`REGISTRY/REPOSITORY` of a layer that stayed there."""

# Docker's names of the same bytes (image-spec, media-types.md, "Compatibility Matrix").
_OCI_TYPES = {
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": OCI_LAYER_TAR,
}
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_TAG_PREFIX = "edgewright-base/"


@dataclass(frozen=True, slots=True)
class BroughtBase:
    """A base's layers, lowest first, each with its diff_id.

    Attributes:
        name: what tells this base from others, on any machine: a reference by digest, or a digest.
        env: the base's own environment, `NAME=value`.
        source: `REGISTRY/REPOSITORY` where the layers stayed there, else None.
    """

    name: str
    layers: tuple[tuple[Descriptor, ImageDigest], ...]
    env: tuple[str, ...] = ()
    source: str | None = None


def docker_logins(registry: str) -> BasicCredentials | None:
    """The user's own login, as `docker pull` would take it."""
    from publisher.credentials.docker_config import DockerConfig

    return DockerConfig.of(os.environ).login(registry)


class BaseSource(Protocol):
    """One place a base is taken from; `label` is for messages and progress."""

    label: str
    stays_there: bool

    def key(self, platform: Platform) -> str | None:
        """Name of what the base is on this platform at this moment; None when only bringing it tells."""

    def bring(self, store: ContentStore, platform: Platform) -> BroughtBase:
        """Put the layers into `store`.

        Raises:
            BaseImageError, ContainerError: it is not there, not for this platform, or not what its digests say.
        """


def base_tag(name: str) -> str:
    """Tag of a base made here, in the workspace's store."""
    return f"{_TAG_PREFIX}{name}"


def created_bases(store: ContentStore) -> list[str]:
    """Names of the bases made here."""
    return sorted(tag.removeprefix(_TAG_PREFIX) for tag in store.tags() if tag.startswith(_TAG_PREFIX))


class StoreSource:
    """A base made here: its layers are in the store already."""

    stays_there = False

    def __init__(self, store: ContentStore, name: str) -> None:
        self.label = name
        self._store = store
        tagged = store.resolve(base_tag(name))
        assert tagged is not None  # looked up by the caller
        self._digest = tagged.digest

    def key(self, platform: Platform) -> str | None:
        return _key("store", str(self._digest), str(platform))

    def bring(self, store: ContentStore, platform: Platform) -> BroughtBase:
        try:
            image = self._store.find_image(self._digest, platform)
        except PlatformNotFoundError as error:
            raise BaseImageError(
                f"base {self.label}: {error.message}",
                where=self.label,
                next_command=f"edgewright image base create --arch {platform.architecture} --name {self.label}",
            ) from error
        if image is None:
            raise BaseImageError(
                f"base {self.label} is not whole in {store.root}",
                where=self.label,
                next_command=f"edgewright image base create --arch {platform.architecture}",
            )
        layers = tuple(zip(map(_plain, image.manifest.layers), image.config.diff_ids, strict=True))
        return BroughtBase(f"{self.label}@{image.descriptor.digest}", layers, image.config.env)


class RegistrySource:
    """An image in a registry."""

    def __init__(
        self,
        ref: ImageRef,
        credentials: BaseCredentials,
        resolved: Callable[[ImageRef, ImageDigest], None],
        *,
        stays_there: bool,
        steps: Steps = no_steps,
    ) -> None:
        """Args: resolved: told which digest a tag meant; stays_there: layers are only to be looked into."""
        self.label = str(ref)
        self.stays_there = stays_there
        self._asked = self._ref = ref
        self._credentials = credentials
        self._resolved = resolved
        self._steps = steps

    def key(self, platform: Platform) -> str | None:
        if not self._ref.is_pinned:
            return None
        return _key("registry", str(self._ref), str(platform), "mount" if self.stays_there else "copy")

    def bring(self, store: ContentStore, platform: Platform) -> BroughtBase:
        from edge_containers.registry_client import RegistryClient

        registry = self._ref.registry or ""
        with (
            RegistryClient(registry, credentials=self._credentials(registry)) as client,
            self._steps(f"fetching {self._ref} for {platform}") as progress,
        ):
            pulled = client.pull_image(self._ref, platform, store, progress)
        # The second platform is to be of the same image, whatever the tag means by then.
        self._ref = pulled.ref
        assert pulled.ref.digest is not None
        if not self._asked.is_pinned:
            self._resolved(self._asked, pulled.ref.digest)
        place = f"{registry}/{self._ref.repository}" if self.stays_there else None
        layers = [_plain(layer) for layer in pulled.manifest.layers]
        if place is not None:
            layers = [layer.annotated(**{SOURCE_ANNOTATION: place}) for layer in layers]
        pairs = tuple(zip(layers, pulled.config.diff_ids, strict=True))
        return BroughtBase(str(pulled.ref), pairs, pulled.config.env, place)


class DiskSource:
    """An OCI layout or a tar on disk; see `base.py` for which tars."""

    stays_there = False

    def __init__(self, path: str, root: Path, compression: int) -> None:
        """Args: root: what a relative path starts from; compression: gzip level for a tar that has none."""
        self.label = path
        self._root = root
        self._compression = compression

    def key(self, platform: Platform) -> str | None:
        path, tag = self._path(platform)
        file = path / "index.json" if path.is_dir() else path
        try:
            stat = file.stat()
        except OSError:
            return None
        seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, tag, self._compression)
        return _key("disk", str(path), str(platform), *map(str, seen))

    def bring(self, store: ContentStore, platform: Platform) -> BroughtBase:
        path, tag = self._path(platform)
        try:
            if path.is_dir():
                return _from_layout(_LayoutFolder(path), tag, store, platform)
            if not _is_gzip(path):  # a compressed tar is a root file system's: listing it would unpack it all
                with tarfile.open(path, "r:") as archive:
                    members = _ArchiveMembers(archive)
                    if "index.json" in members.names:
                        return _from_layout(members, tag, store, platform)
                    if "manifest.json" in members.names:
                        return _from_docker(members, store, platform, self._compression, {})
            return _from_rootfs(path, store, self._compression)
        except (OSError, tarfile.TarError, zlib.error, EOFError) as error:
            raise BaseImageError(f"base {path} cannot be read: {error}", where=str(path)) from error
        except ContainerError as error:
            raise BaseImageError(f"base {path}: {error.message}", where=str(path)) from error

    def _path(self, platform: Platform) -> tuple[Path, str | None]:
        """The path for a platform, and the tag behind it: `./layout:1.0`."""
        text = self.label.replace("{arch}", platform.architecture)
        path = (self._root / Path(text).expanduser()).absolute()
        if path.exists() or ":" not in path.name:
            return path, None
        name, _, tag = path.name.rpartition(":")
        return path.with_name(name), tag


class _Members(Protocol):
    """Files by their path in a layout or archive."""

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> IO[bytes]: ...


class _LayoutFolder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read(MAX_DOCUMENT_BYTES)

    def open(self, name: str) -> IO[bytes]:
        return (self._root / name).open("rb")


class _ArchiveMembers:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self.names = {member.name.removeprefix("./"): member for member in archive.getmembers()}

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read(MAX_DOCUMENT_BYTES)

    def open(self, name: str) -> IO[bytes]:
        if name not in self.names:
            raise FileNotFoundError(f"{name} is not in it")
        found = self._archive.extractfile(self.names[name])
        if found is None:
            raise FileNotFoundError(f"{name} is no file in it")
        return found


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


def _from_layout(members: _Members, tag: str | None, store: ContentStore, platform: Platform) -> BroughtBase:
    entry = _entry(json.loads(members.read("index.json")), tag)
    data = _document(members, entry)
    if document_type(data, str(entry.digest)) in INDEX_TYPES:
        chosen = select_platform(ImageIndex.from_bytes(data), platform)
        data = _document(members, chosen)
    manifest = ImageManifest.from_bytes(data)
    config = read_config(_document(members, manifest.config), manifest, platform)
    for layer in manifest.layers:
        if not store.is_whole(layer):
            with (
                members.open(_blob_name(layer.digest)) as source,
                store.writer(layer.digest, layer.size) as blob,
            ):
                _copy(source, blob.write)
    layers = tuple(zip(map(_plain, manifest.layers), config.diff_ids, strict=True))
    return BroughtBase(str(entry.digest), layers, config.env)


def _entry(index: Mapping[str, Any], tag: str | None) -> Descriptor:
    entries = [Descriptor.from_dict(each) for each in index.get("manifests", [])]
    named = {each.annotations.get(REF_NAME, ""): each for each in entries}
    if tag is not None:
        if tag not in named:
            raise BaseImageError(
                f"the layout has no image {tag!r}, it has {', '.join(sorted(named)) or 'none'}"
            )
        return named[tag]
    if len(entries) != 1:
        raise BaseImageError(
            f"the layout has {len(entries)} images; name one as PATH:TAG ({', '.join(sorted(named)) or 'none'})"
        )
    return entries[0]


def _document(members: _Members, descriptor: Descriptor) -> bytes:
    data = members.read(_blob_name(descriptor.digest))
    if ImageDigest.of(data) != descriptor.digest:
        raise BaseImageError(f"document {descriptor.digest} is not what its digest says")
    return data


def _blob_name(digest: ImageDigest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def from_docker_archive(
    path: Path,
    store: ContentStore,
    platform: Platform,
    compression: int,
    known: Mapping[ImageDigest, Descriptor],
) -> BroughtBase:
    """What `docker save` wrote, as a base; layers of `known` diff_ids are in the store already."""
    with tarfile.open(path, "r:") as archive:
        return _from_docker(_ArchiveMembers(archive), store, platform, compression, known)


def _from_docker(
    members: _Members,
    store: ContentStore,
    platform: Platform,
    compression: int,
    known: Mapping[ImageDigest, Descriptor],
) -> BroughtBase:
    """An archive of `docker save`: tars by path, a config that names their diff_ids."""
    [entry] = json.loads(members.read("manifest.json"))[:1] or [{}]
    data = members.read(entry["Config"])
    config = ImageConfig.from_bytes(data)
    if not platform.runs(config.platform):
        raise BaseImageError(f"the image is for {config.platform}, not for {platform}")
    layers = []
    for name, diff_id in zip(entry["Layers"], config.diff_ids, strict=True):
        if diff_id in known:
            layers.append((known[diff_id], diff_id))
            continue
        with members.open(name) as source:
            layers.append(store_tar(source, store, compression))
        if layers[-1][1] != diff_id:
            raise BaseImageError(
                f"layer {name} is not what its config says: {diff_id}, found {layers[-1][1]}"
            )
    return BroughtBase(str(ImageDigest.of(data)), tuple(layers), config.env)


def _from_rootfs(path: Path, store: ContentStore, compression: int) -> BroughtBase:
    descriptor, diff_id = store_rootfs(path, store, compression)
    return BroughtBase(str(diff_id), ((descriptor, diff_id),))


def store_rootfs(path: Path, store: ContentStore, compression: int) -> tuple[Descriptor, ImageDigest]:
    """A root file system's tar as a layer in the store; see `store_tar`."""
    with path.open("rb") as file:
        return store_tar(file, store, compression)


def store_tar(file: IO[bytes], store: ContentStore, compression: int) -> tuple[Descriptor, ImageDigest]:
    """A tar as a layer in the store: as it is where compressed, else compressed. `file` can be rewound."""
    plain = hashlib.sha256()
    is_gzip = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    with ExitStack() as stack:
        blob = stack.enter_context(store.writer())
        if is_gzip:
            _copy(file, blob.write)
            file.seek(0)
            _copy(cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file))), plain.update)
        else:
            out = cast(IO[bytes], blob)
            with gzip.GzipFile("", "wb", fileobj=out, compresslevel=compression or 1, mtime=0) as sink:
                while data := file.read(_CHUNK_BYTES):
                    plain.update(data)
                    sink.write(data)
    return blob.blob.describe(OCI_LAYER_GZIP), ImageDigest("sha256", plain.hexdigest())


def _copy(source: IO[bytes], write: Callable[[bytes], object]) -> None:
    while data := source.read(_CHUNK_BYTES):
        write(data)


def _plain(layer: Descriptor) -> Descriptor:
    """The layer as an OCI one, without the annotations of the image it comes from."""
    return replace(
        layer, media_type=_OCI_TYPES.get(layer.media_type, layer.media_type), annotations={}, platform=None
    )


def _key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
