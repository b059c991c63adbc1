"""Content-addressed store: an OCI image layout on disk that `skopeo` and `docker` tools read as it is.

    ROOT/oci-layout  index.json          tags, as annotations of the index (image-spec, image-layout.md)
    ROOT/blobs/sha256/HEX                a blob is here whole or not at all
    ROOT/ingest/HEX.part  *.tmp          what is being written; readers of the layout ignore it

Rules:

- A blob is hashed while it is written, synced, and renamed into place: a power cut leaves the old state or the new.
- A `.part` file outlives a failed download and is continued; a `.tmp` file does not. Whoever writes one holds its lock
  (flock), so two processes never write one file and clean-up never takes a file in use.
- Bytes that are not what their digest says, and bytes that no longer fit, are removed at once.
- Documents are verified on every read, layers by who unpacks them.
- `index.json` is changed under a lock and replaced by rename.

    store = ContentStore(Path("oci"))
    layer = store.put_bytes(data).describe(OCI_LAYER_TAR)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest

from .errors import BlobNotFoundError, ContainerError, DigestMismatchError, DiskFullError, ImageFormatError
from .image_model import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Platform,
    StoredImage,
    document_type,
    read_config,
    select_platform,
)

REF_NAME = "org.opencontainers.image.ref.name"

# image-spec, annotations.md, "org.opencontainers.image.ref.name".
_REF_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_REF_NAME = re.compile(rf"{_REF_COMPONENT}(?:/{_REF_COMPONENT})*")
_LAYOUT_VERSION = "1.0.0"
_CHUNK_BYTES = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Blob(NamedTuple):
    """A stored blob, not yet said what it is."""

    digest: ImageDigest
    size: int

    def describe(
        self, media_type: str, annotations: Mapping[str, str] | None = None, platform: Platform | None = None
    ) -> Descriptor:
        return Descriptor(media_type, self.digest, self.size, dict(annotations or {}), platform)


class BlobWriter:
    """Write side of one blob: counts and hashes. Got from `ContentStore.writer` or `.resumable`, which finish it.

    Also a file object of the kind `gzip` and `tarfile` write to.
    """

    def __init__(self, file: BinaryIO, expected_size: int | None) -> None:
        self._file = file
        self._expected_size = expected_size
        self._hash = hashlib.sha256()
        self._unwritten_bytes = 0
        self.size = 0

    @property
    def digest(self) -> ImageDigest:
        """Digest of what is written so far."""
        return ImageDigest("sha256", self._hash.hexdigest())

    @property
    def blob(self) -> Blob:
        return Blob(self.digest, self.size)

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        self._unwritten_bytes = len(view)
        while view:
            # Unbuffered files may take less than they are given.
            written = self._file.write(view)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]
            self._unwritten_bytes = len(view)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here; file-like writers expect the method."""

    def restart(self) -> None:
        """Throw away what is written and begin again."""
        self._file.seek(0)
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def adopt(self) -> None:
        """Take the bytes already in the file as written, unless there are more than the blob has."""
        present = os.fstat(self._file.fileno()).st_size
        if self._expected_size is not None and present > self._expected_size:
            self.restart()
        while self.size < present and (chunk := self._file.read(_CHUNK_BYTES)):
            self._hash.update(chunk)
            self.size += len(chunk)

    @property
    def missing_bytes(self) -> int:
        """What is still to be written; where no size was announced, the rest of the chunk at hand."""
        return max((self._expected_size or 0) - self.size, self._unwritten_bytes)


class ContentStore:
    """See the module; safe to use from several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the layout at `root`, made when absent.

        Raises:
            ImageFormatError: the folder holds a layout of another version.
        """
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        """The folder of the blobs, by their digests."""

        self._ingest = root / "ingest"
        with _disk_full_named(root):
            self.blobs.mkdir(parents=True, exist_ok=True)
            self._ingest.mkdir(exist_ok=True)
            self._ensure_layout()

    def path(self, digest: ImageDigest) -> Path:
        """Where the blob is, or would be.

        Raises:
            ImageFormatError: not a sha256 digest; no registry in use serves others.
        """
        if digest.algorithm != "sha256":
            raise ImageFormatError(f"digest must be sha256, not {digest}")
        return self.blobs / digest.hex

    def has(self, digest: ImageDigest) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: ImageDigest) -> int:
        return self._stat(digest).st_size

    def open(self, digest: ImageDigest) -> BufferedReader:
        """Open a blob for reading, unverified.

        Raises:
            BlobNotFoundError: it is not here.
        """
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            raise self._absent(digest) from error

    def read_bytes(self, digest: ImageDigest) -> bytes:
        """Read a document whole, verified.

        Raises:
            BlobNotFoundError: it is not here.
            DigestMismatchError: the disk changed it; it was removed, so that the next pull fetches it again.
            ImageFormatError: it is larger than a document may be.
        """
        if self.size(digest) > MAX_DOCUMENT_BYTES:
            raise ImageFormatError(
                f"{self.path(digest)} is larger than a document of {MAX_DOCUMENT_BYTES} bytes"
            )
        with self.open(digest) as file:
            data = file.read()
        found = ImageDigest.of(data)
        if found != digest:
            self.delete(digest)
            raise DigestMismatchError(expected=str(digest), found=str(found), where=str(self.path(digest)))
        return data

    def read_json(self, digest: ImageDigest) -> Any:
        data = self.read_bytes(digest)
        try:
            return json.loads(data)
        except ValueError as error:
            raise ImageFormatError(f"{self.path(digest)} is not JSON: {error}") from error

    def put_bytes(self, data: bytes) -> Blob:
        with self.writer(size=len(data)) as writer:
            writer.write(data)
        return writer.blob

    @contextmanager
    def writer(
        self, expected: ImageDigest | None = None, size: int | None = None, source: str | None = None
    ) -> Iterator[BlobWriter]:
        """Write one blob; it appears when the block ends well, and nothing stays when it does not.

        Args:
            expected: digest it must have.
            size: bytes to come, for the message when the disk is full.
            source: whose bytes these are, for messages.

        Raises:
            DigestMismatchError: the bytes are not `expected`.
            DiskFullError: no room left.
        """
        path = self._ingest / f"{secrets.token_hex(8)}.tmp"
        with self._written(path, size) as (writer, file):
            try:
                yield writer
                self._commit(path, writer, file, expected, source)
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def resumable(self, expected: ImageDigest, size: int, source: str | None = None) -> Iterator[BlobWriter]:
        """Write one blob that a failed attempt may have begun: `writer.size` says how much is already there.

        What is written stays for the next attempt when the block fails, unless the bytes were wrong or did not fit.
        A second process that wants the same blob meanwhile writes a file of its own.

        Raises:
            DigestMismatchError, DiskFullError: as `writer`.
        """
        path = self._ingest / f"{self.path(expected).name}.part"
        file = _open_locked(path)
        if file is None:
            with self.writer(expected, size, source) as writer:
                yield writer
            return
        with self._written(path, size, file) as (writer, file):
            writer.adopt()
            try:
                yield writer
                self._commit(path, writer, file, expected, source)
            except (DigestMismatchError, OSError) as error:
                if isinstance(error, DigestMismatchError) or error.errno in _NO_SPACE:
                    path.unlink(missing_ok=True)
                raise

    def pending_bytes(self, digest: ImageDigest) -> int:
        """How much of the blob a failed download left here."""
        try:
            return (self._ingest / f"{self.path(digest).name}.part").stat().st_size
        except FileNotFoundError:
            return 0

    def require_space(self, needed_bytes: int) -> None:
        """Fail before a download rather than in the middle of it.

        Raises:
            DiskFullError: less than `needed_bytes` are free.
        """
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            raise DiskFullError(needed_bytes=needed_bytes, free_bytes=free_bytes, where=str(self.root))

    def tag(self, name: str, descriptor: Descriptor) -> None:
        """Give a stored index or manifest a name; a name moves, it is never given twice.

        Raises:
            BlobNotFoundError: the blob is not here.
            ContainerError: the name breaks the rule of image-spec's `org.opencontainers.image.ref.name`.
        """
        if not _REF_NAME.fullmatch(name):
            raise ContainerError(
                f"image name must be letters and digits joined by - . _ : @ + or /, not {name!r}"
            )
        self._stat(descriptor.digest)
        named = descriptor.annotated(**{REF_NAME: name})
        self._edit_index(lambda entries: [*_without(entries, name), named.to_dict()])

    def untag(self, name: str) -> None:
        """Take the name away; the blobs stay until `collect_garbage`."""
        self._edit_index(lambda entries: _without(entries, name))

    def resolve(self, name: str) -> Descriptor | None:
        return self.tags().get(name)

    def tags(self) -> dict[str, Descriptor]:
        """Named images in the order they were named, without the annotation that carries the name."""
        where = str(self.root / "index.json")
        descriptors = (Descriptor.from_dict(entry, where) for entry in self._read_index())
        return {
            each.annotations[REF_NAME]: _unnamed(each) for each in descriptors if REF_NAME in each.annotations
        }

    def find_image(self, digest: ImageDigest, platform: Platform) -> StoredImage | None:
        """The image an index or manifest digest means on `platform`, if every blob of it is here at its full size.

        Raises:
            PlatformNotFoundError: the image is not built for `platform`.
            ImageFormatError: a document of it is broken.
        """
        if not self.has(digest):
            return None
        data = self.read_bytes(digest)
        media_type = document_type(data, str(digest))
        descriptor = Descriptor(media_type, digest, len(data))
        if media_type in INDEX_TYPES:
            descriptor = select_platform(ImageIndex.from_bytes(data, f"image index {digest}"), platform)
        if not self.has(descriptor.digest):
            return None
        manifest = ImageManifest.from_bytes(
            self.read_bytes(descriptor.digest), f"image manifest {descriptor.digest}"
        )
        if not all(self.is_whole(blob) for blob in manifest.blobs):
            return None
        config = read_config(self.read_bytes(manifest.config.digest), manifest, platform)
        return StoredImage(descriptor, manifest, config)

    def is_whole(self, descriptor: Descriptor) -> bool:
        """Whether the blob is here in its full size; a cheap check that no digest is computed for."""
        try:
            return self.path(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def delete(self, digest: ImageDigest) -> None:
        """Remove one blob, absent or not; what refers to it is the caller's concern."""
        self.path(digest).unlink(missing_ok=True)

    def collect_garbage(self, keep: Iterable[ImageDigest] = ()) -> int:
        """Remove blobs that no tag and none of `keep` reaches, and what dead writers left behind.

        Must not run beside a build or a pull into the same store: their blobs are not reachable yet.

        Returns:
            Bytes freed.
        """
        live = self.reachable([*keep, *(descriptor.digest for descriptor in self.tags().values())])
        dead = [path for path in self.blobs.iterdir() if path.name not in live]
        return sum(_remove(path) for path in [*dead, *filter(_is_abandoned, self._ingest.iterdir())])

    def _ensure_layout(self) -> None:
        path = self.root / "oci-layout"
        if not path.exists():
            _replace(path, json.dumps({"imageLayoutVersion": _LAYOUT_VERSION}).encode())
        try:
            version = json.loads(path.read_bytes()).get("imageLayoutVersion")
        except (ValueError, AttributeError) as error:
            raise ImageFormatError(f"{path} is not an OCI layout file: {error}", where=str(path)) from error
        if version != _LAYOUT_VERSION:
            raise ImageFormatError(
                f"{path}: imageLayoutVersion must be {_LAYOUT_VERSION}, not {version!r}", where=str(path)
            )
        if not (self.root / "index.json").exists():
            self._edit_index(lambda entries: entries)

    @contextmanager
    def _written(
        self, path: Path, size: int | None, file: BinaryIO | None = None
    ) -> Iterator[tuple[BlobWriter, BinaryIO]]:
        with _disk_full_named(self.root) as pending:
            file = file or _open_locked(path)
            if file is None:
                raise ContainerError(f"{path} is locked by another process")
            with file:
                writer = BlobWriter(file, size)
                pending.append(writer)
                yield writer, file

    def _commit(
        self, path: Path, writer: BlobWriter, file: BinaryIO, expected: ImageDigest | None, source: str | None
    ) -> None:
        if expected is not None and writer.digest != expected:
            where = source or str(self.path(expected))
            raise DigestMismatchError(expected=str(expected), found=str(writer.digest), where=where)
        os.fsync(file.fileno())
        # The lock goes with the file: whoever opened the old name meanwhile sees that it is gone and starts anew.
        path.replace(self.path(writer.digest))
        sync_folder(self.blobs)

    def _stat(self, digest: ImageDigest) -> os.stat_result:
        try:
            return self.path(digest).stat()
        except FileNotFoundError as error:
            raise self._absent(digest) from error

    def _absent(self, digest: ImageDigest) -> BlobNotFoundError:
        return BlobNotFoundError(
            f"blob {digest} is not in the content store {self.root}", where=str(self.root)
        )

    def _read_index(self) -> list[Any]:
        path = self.root / "index.json"
        try:
            entries = json.loads(path.read_bytes())["manifests"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ImageFormatError(f"{path} is not an OCI image index: {error!r}", where=str(path)) from error
        return list(entries)

    def _edit_index(self, change: Callable[[list[Any]], list[Any]]) -> None:
        with _disk_full_named(self.root), (self._ingest / "index.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = {"schemaVersion": 2, "manifests": change(self._read_index())}
            _replace(self.root / "index.json", json.dumps(index, indent=1).encode())

    def reachable(self, roots: Iterable[ImageDigest]) -> set[str]:
        """Hexadecimal digests of `roots` and of everything their documents name."""
        live: set[str] = set()
        queue = list(roots)
        while queue:
            digest = queue.pop()
            if digest.hex not in live:
                live.add(digest.hex)
                queue.extend(self._links(digest))
        return live

    def _links(self, digest: ImageDigest) -> list[ImageDigest]:
        """Digests a document names; none for anything that is no document."""
        if not self.has(digest) or self.size(digest) > MAX_DOCUMENT_BYTES:
            return []
        try:
            document = json.loads(self.path(digest).read_bytes())
            linked = [*document.get("manifests", []), *document.get("layers", [])]
            linked += [document["config"]] if "digest" in document.get("config", {}) else []
            return [ImageDigest.parse(each["digest"]) for each in linked]
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError, EdgewrightError):
            return []


def _unnamed(descriptor: Descriptor) -> Descriptor:
    others = {name: value for name, value in descriptor.annotations.items() if name != REF_NAME}
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, others, descriptor.platform)


def _without(entries: list[Any], name: str) -> list[Any]:
    return [entry for entry in entries if entry.get("annotations", {}).get(REF_NAME) != name]


@contextmanager
def _disk_full_named(root: Path) -> Iterator[list[BlobWriter]]:
    """Translate "no space" once; the block may append its writer, for how much is still needed."""
    writers: list[BlobWriter] = []
    try:
        yield writers
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        needed_bytes = sum(writer.missing_bytes for writer in writers)
        free_bytes = shutil.disk_usage(root).free
        raise DiskFullError(needed_bytes=needed_bytes, free_bytes=free_bytes, where=str(root)) from error


def _open_locked(path: Path) -> BinaryIO | None:
    """Open for reading and writing with the lock held; None when another holds it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        # The holder renamed or removed it between our open and our lock.
        file.close()


def _is_abandoned(path: Path) -> bool:
    """Whether no process writes this file. Parts count too: with no pull running, nobody is about to continue one."""
    if path.suffix not in (".part", ".tmp"):
        return False
    file = _open_locked(path)
    if file is None:
        return False
    file.close()
    return True


def _remove(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
