"""Layers: reproducible tars of files, hashed, compressed and stored in one pass, and kept for the next build.

Rules, so that the same files give the same bytes on every machine:
- entries sorted by path, parent folders explicit, owner 0:0 without names, mtime 0, folders and programs 0755, other
  files 0644, whatever the builder's umask and clock;
- PAX headers only where a name needs one; gzip without name and time;
- what is compressed may differ between versions of zlib, so machines compare `diff_id` (the tar), not `digest`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import secrets
import tarfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol, cast

from edge_containers.image_model import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor, canonical_json
from edge_containers.store import ContentStore
from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageDigest
from publisher.errors import BuildCancelledError, ModelFileError

ROLE_ANNOTATION = "edgewright.layer"

LAYER_FORMAT = 1
"""Counts up when the same files would give other bytes; older cache entries are then passed over."""

DIRECTORY_MODE = 0o755
PROGRAM_MODE = 0o755
FILE_MODE = 0o644

# What is read and written at a time; tarfile's own 16 KB would cost more than hashing.
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One file of a layer: its path from the image's root, and its bytes or where they are."""

    path: str
    source: Path | bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """A layer in the store.

    Attributes:
        diff_id: digest of the tar before compression.
        reused: whether an earlier build had made it.
        seconds: what it took now.
    """

    role: str
    descriptor: Descriptor
    diff_id: ImageDigest
    reused: bool
    seconds: float


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _HashingSink:
    """Passes bytes on and hashes them."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._sink.write(data)
        return len(data)

    @property
    def digest(self) -> ImageDigest:
        return ImageDigest("sha256", self._hash.hexdigest())


def write_layer(
    store: ContentStore,
    role: str,
    files: Iterable[LayerFile],
    *,
    compression: int,
    stop: threading.Event | None = None,
) -> tuple[Descriptor, ImageDigest]:
    """Write a layer into the store; `compression` is a gzip level, 0 stores the tar as it is.

    When `stop` is set meanwhile, it ends with `BuildCancelledError` and nothing is stored.

    Returns:
        Its descriptor, annotated with the role, and its diff_id.
    """
    annotations = {ROLE_ANNOTATION: role}
    with store.writer() as blob:
        if not compression:
            write_tar(blob, files, stop)
            return blob.blob.describe(OCI_LAYER_TAR, annotations), blob.digest
        with gzip.GzipFile(
            filename="", mode="wb", fileobj=cast(IO[bytes], blob), compresslevel=compression, mtime=0
        ) as compressed:
            hashing = _HashingSink(compressed)
            write_tar(hashing, files, stop)
    return blob.blob.describe(OCI_LAYER_GZIP, annotations), hashing.digest


def write_tar(sink: _Sink, files: Iterable[LayerFile], stop: threading.Event | None = None) -> None:
    """Write the tar alone; see `write_layer`."""
    by_path = {file.path: file for file in files}
    folders = {parent for path in by_path for parent in _parents(path)}
    with tarfile.open(
        fileobj=cast(IO[bytes], sink),
        mode="w|",
        format=tarfile.PAX_FORMAT,
        bufsize=_BLOCK,
        copybufsize=_BLOCK,
    ) as tar:
        for path in sorted(folders | by_path.keys()):
            if stop is not None and stop.is_set():
                raise BuildCancelledError("the build was cancelled")
            if path in by_path:
                _add_file(tar, by_path[path])
            else:
                tar.addfile(_entry(path, DIRECTORY_MODE, tarfile.DIRTYPE))


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _add_file(tar: tarfile.TarFile, file: LayerFile) -> None:
    entry = _entry(file.path, PROGRAM_MODE if file.executable else FILE_MODE, tarfile.REGTYPE)
    if isinstance(file.source, bytes):
        entry.size = len(file.source)
        tar.addfile(entry, io.BytesIO(file.source))
        return
    with file.source.open("rb") as source:
        entry.size = source.seek(0, io.SEEK_END)
        source.seek(0)
        try:
            tar.addfile(entry, source)
        except OSError as error:
            if "unexpected end of data" in str(error):
                raise ModelFileError(
                    f"{file.source} became shorter while it was read", where=str(file.source)
                ) from error
            raise


def _entry(path: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.mode, entry.type = mode, kind
    return entry


def layer_key(role: str, compression: int, inputs: Sequence[str]) -> str:
    """Name of a layer in the cache: what it is made of, not what came out."""
    document = {"format": LAYER_FORMAT, "role": role, "compression": compression, "inputs": list(inputs)}
    return hashlib.sha256(canonical_json(document)).hexdigest()


def files_key(role: str, compression: int, files: Iterable[LayerFile]) -> str:
    """`layer_key` of small files, by their content."""
    inputs = [f"{file.path}\0{file.executable}\0{ImageDigest.of(_content(file))}" for file in files]
    return layer_key(role, compression, sorted(inputs))


def _content(file: LayerFile) -> bytes:
    return file.source if isinstance(file.source, bytes) else file.source.read_bytes()


class LayerCache:
    """Remembers which blob a layer's inputs gave; a blob that is gone from the store counts as not remembered."""

    def __init__(self, folder: Path, store: ContentStore) -> None:
        self._folder = folder
        self._store = store

    def get(self, key: str, role: str) -> BuiltLayer | None:
        """The layer, if an earlier build made it and it is whole."""
        try:
            entry = json.loads((self._folder / f"{key}.json").read_bytes())
            digest, diff_id = ImageDigest.parse(entry["digest"]), ImageDigest.parse(entry["diffId"])
            descriptor = Descriptor(entry["mediaType"], digest, entry["size"], {ROLE_ANNOTATION: role})
        except (OSError, ValueError, KeyError, TypeError, ContractError):
            return None
        if not self._store.is_whole(descriptor):
            return None
        return BuiltLayer(role, descriptor, diff_id, reused=True, seconds=0.0)

    def put(self, key: str, layer: BuiltLayer) -> None:
        """Remember a layer that is in the store."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = layer.descriptor
        entry = {
            "digest": str(descriptor.digest),
            "diffId": str(layer.diff_id),
            "mediaType": descriptor.media_type,
            "size": descriptor.size,
        }
        part = self._folder / f".{key}.{secrets.token_hex(4)}"
        part.write_bytes(canonical_json(entry))
        part.replace(self._folder / f"{key}.json")


def timed(layer: BuiltLayer, seconds: float) -> BuiltLayer:
    """The layer with what it took."""
    return replace(layer, seconds=seconds)
