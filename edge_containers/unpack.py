"""Unpacking a layer where nothing it says is believed before it is checked.

Rules (`UnsafeLayerError` names the entry for each):

- The blob's digest is verified before a byte of it is parsed, its diff_id while it is unpacked.
- Names are relative, without `..`, and never run through a link: the parent of every entry is a folder of this layer.
- A symbolic link stays in the layer: its target is relative, `..` stands at its start only and never climbs above the
  root. (`a/b/s -> ../..` then `t -> a/b/s/../x` is why `..` in the middle is refused.) A hard link names an earlier file.
- Only files, folders and links: no devices, FIFOs or sparse files; no setuid or setgid bit. A file named twice is refused.
- Written modes are 0755 and 0644; owner, times and extended attributes (so file capabilities) are not taken over.
- Bytes and entries are capped, long-name and PAX headers too: `tarfile` would read those into memory whole.
- Whiteouts (`.wh.NAME`) are refused: layers are unpacked one by one into folders of their own, as images without a base
  need it, so there is no lower layer that one could hide.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gzip
import hashlib
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from edge_contracts.image_ref import ImageDigest

from .errors import DigestMismatchError, DiskFullError, ImageFormatError, UnsafeLayerError
from .image_model import DOCKER_LAYER_GZIP, OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor
from .store import ContentStore, sync_folder

_GZIP_TYPES = frozenset({OCI_LAYER_GZIP, DOCKER_LAYER_GZIP})
_CHUNK_BYTES = 1 << 20
_WHITEOUT = ".wh."
_SET_ID_BITS = 0o6000
# A path is at most 4096 bytes on Linux (limits.h, PATH_MAX); a PAX header holds a name, a link target and small change.
_MAX_HEADER_BYTES = 64 << 10
_HEADER_TYPES = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_UNFINISHED = ".unpacking"
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.EILSEQ, errno.EINVAL)
# tarfile lets the errors of its number and header parsing through: int(), missing keys, one call per header in a chain.
_DAMAGES = (
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How large a layer may become.

    The largest honest layer met is a dependencies layer with a deep learning framework: 5 GB in 60,000 files.
    """

    total_bytes: int = 8 << 30
    entries: int = 200_000


def unpack_layer(
    store: ContentStore,
    descriptor: Descriptor,
    diff_id: ImageDigest,
    destination: Path,
    limits: UnpackLimits = UnpackLimits(),
) -> None:
    """Unpack a stored layer into `destination`, which exists afterwards whole, and otherwise not at all.

    A destination that exists is taken as unpacked already: name it by `diff_id`. Its parent must exist.

    Raises:
        BlobNotFoundError: the layer is not in the store.
        DigestMismatchError: the blob or its content is not what was named; a bad blob was removed from the store.
        UnsafeLayerError: an entry breaks a rule above, or a limit is exceeded.
        ImageFormatError: not a tar, damaged, or of a compression that is not read here (zstd).
        DiskFullError: no room left.
    """
    if destination.is_dir():
        return
    with store.open(descriptor.digest) as blob:
        _verify(store, descriptor, blob)
        try:
            with _unfinished_folder(destination) as folder:
                _unpack_verified(blob, descriptor, diff_id, folder, limits)
        except OSError as error:
            translated = _translated(error, descriptor, destination.parent)
            if translated is None:
                raise
            raise translated from error


def remove_unfinished(parent: Path) -> None:
    """Remove what unpacking into folders under `parent` left behind when it was killed; never what still runs."""
    for folder in parent.glob(f".*{_UNFINISHED}"):
        lock = _lock_folder(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _CountedReader:
    """Hashes what is read and stops at the limit."""

    def __init__(self, source: _Readable, limit_bytes: int, where: str) -> None:
        self._source = source
        self._left = limit_bytes
        self._limit_bytes = limit_bytes
        self._where = where
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UnsafeLayerError(
                f"{self._where} unpacks to more than {self._limit_bytes} bytes", where=self._where
            )
        self._hash.update(data)
        return data

    def drain(self) -> ImageDigest:
        """Read what follows the tar's end mark, and tell the digest of everything."""
        while self.read(_CHUNK_BYTES):
            pass
        return ImageDigest("sha256", self._hash.hexdigest())


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses oversized headers before `tarfile` reads their bodies into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _HEADER_TYPES and member.size > _MAX_HEADER_BYTES):
            raise UnsafeLayerError(
                f"tar header announces {member.size} bytes, at most {_MAX_HEADER_BYTES} are read"
            )
        return member


class _LayerWriter:
    """Writes entries below one folder, and remembers what kind each path of it is."""

    def __init__(self, root: Path, limits: UnpackLimits, where: str) -> None:
        self._root = root
        self._limits = limits
        self._where = where
        self._kinds: dict[PurePosixPath, str] = {PurePosixPath("."): "folder"}

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._checked(member.name, member.name)
        kind = self._kind(member)
        self._make_parents(path, member.name)
        if kind == "folder":
            self._make_folder(path, member.name)
            return
        self._claim(path, kind, member.name)
        target = self._root / path
        if kind == "file":
            self._write_file(archive, member, target)
        elif kind == "symbolic link":
            self._check_link_target(path, member)
            target.symlink_to(member.linkname)
        else:
            self._link(path, member)

    def _kind(self, member: tarfile.TarInfo) -> str:
        if member.mode & _SET_ID_BITS:
            raise self._unsafe(member.name, f"has a setuid or setgid bit (mode {member.mode:04o})")
        if member.issparse() or member.size < 0:
            raise self._unsafe(member.name, "is a sparse file, or has a negative size")
        if member.isreg():
            return "file"
        kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"}
        if member.type not in kinds:
            raise self._unsafe(
                member.name, f"is of tar type {member.type!r}: only files, folders and links are unpacked"
            )
        return kinds[member.type]

    def _checked(self, name: str, entry: str) -> PurePosixPath:
        if not name or "\0" in name:
            raise self._unsafe(entry, "has an empty name or a NUL in it")
        if name.startswith("/"):
            raise self._unsafe(entry, "has an absolute path")
        path = PurePosixPath(name)
        if ".." in path.parts:
            raise self._unsafe(entry, "has '..' in its path")
        if any(part.startswith(_WHITEOUT) for part in path.parts):
            raise self._unsafe(entry, "is a whiteout, and layers are unpacked without lower layers")
        return path

    def _make_parents(self, path: PurePosixPath, entry: str) -> None:
        for parent in reversed(path.parents[:-1]):
            self._make_folder(parent, entry)

    def _make_folder(self, path: PurePosixPath, entry: str) -> None:
        kind = self._kinds.get(path)
        if kind is None:
            self._claim(path, "folder", entry)
            folder = self._root / path
            folder.mkdir()
            folder.chmod(0o755)  # mkdir's own mode passes through the umask
        elif kind != "folder":
            raise self._unsafe(entry, f"runs through the {kind} '{path}'")

    def _claim(self, path: PurePosixPath, kind: str, entry: str) -> None:
        if path in self._kinds:
            raise self._unsafe(entry, f"is in the layer twice, first as a {self._kinds[path]}")
        if len(self._kinds) > self._limits.entries:
            raise self._unsafe(entry, f"is one more than the {self._limits.entries} entries a layer may have")
        self._kinds[path] = kind

    def _write_file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        mode = 0o755 if member.mode & 0o100 else 0o644
        source = archive.extractfile(member)
        assert source is not None  # only for what is no file
        with source, os.fdopen(_create(target), "wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
            os.fchmod(file.fileno(), mode)

    def _check_link_target(self, path: PurePosixPath, member: tarfile.TarInfo) -> None:
        target = member.linkname
        if not target or "\0" in target or target.startswith("/"):
            raise self._unsafe(member.name, f"links to {target!r}: only relative targets are unpacked")
        parts = PurePosixPath(target).parts
        climbs = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
        if ".." in parts[climbs:] or climbs > len(path.parent.parts):
            raise self._unsafe(member.name, f"links to {target!r}, which may lie outside the layer")

    def _link(self, path: PurePosixPath, member: tarfile.TarInfo) -> None:
        source = self._checked(member.linkname, member.name)
        if self._kinds.get(source) != "file":
            raise self._unsafe(
                member.name, f"is a hard link to {member.linkname!r}, which is no file before it"
            )
        os.link(self._root / source, self._root / path, follow_symlinks=False)

    def _unsafe(self, entry: str, reason: str) -> UnsafeLayerError:
        return UnsafeLayerError(f"{self._where}: entry {entry!r:.200} {reason}", where=self._where)


def _verify(store: ContentStore, descriptor: Descriptor, blob: BufferedReader) -> None:
    found = ImageDigest("sha256", hashlib.file_digest(blob, "sha256").hexdigest())
    if found != descriptor.digest:
        store.delete(descriptor.digest)
        where = str(store.path(descriptor.digest))
        raise DigestMismatchError(expected=str(descriptor.digest), found=str(found), where=where)
    blob.seek(0)


def _unpack_verified(
    blob: BufferedReader, descriptor: Descriptor, diff_id: ImageDigest, folder: Path, limits: UnpackLimits
) -> None:
    where = f"layer {descriptor.digest}"
    reader = _CountedReader(_decompressed(blob, descriptor), limits.total_bytes, where)
    writer = _LayerWriter(folder, limits, where)
    try:
        _extract(reader, writer)
        found = reader.drain()
    except _DAMAGES as error:
        raise ImageFormatError(f"{where} is damaged: {error}", where=where) from error
    if found != diff_id:
        raise DigestMismatchError(expected=str(diff_id), found=str(found), where=f"{where}, uncompressed,")


def _decompressed(blob: BufferedReader, descriptor: Descriptor) -> _Readable:
    if descriptor.media_type in _GZIP_TYPES:
        return gzip.GzipFile(fileobj=blob, mode="rb")
    if descriptor.media_type == OCI_LAYER_TAR:
        return blob
    where = f"layer {descriptor.digest}"
    raise ImageFormatError(
        f"{where} must be a plain or gzip-compressed tar, not {descriptor.media_type!r}", where=where
    )


def _extract(reader: _CountedReader, writer: _LayerWriter) -> None:
    with tarfile.open(fileobj=reader, mode="r|", tarinfo=_BoundedTarInfo) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            if not (member.isdir() and PurePosixPath(member.name) == PurePosixPath(".")):
                writer.add(archive, member)
            # tarfile keeps every member for random access, which a stream has not.
            archive.members.clear()


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _translated(error: OSError, descriptor: Descriptor, parent: Path) -> Exception | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # What it unpacks to is not known beforehand; it is no less than this.
        free_bytes = shutil.disk_usage(parent).free
        return DiskFullError(needed_bytes=descriptor.size, free_bytes=free_bytes, where=str(parent))
    if error.errno in _NAME_ERRORS:
        where = f"layer {descriptor.digest}"
        return UnsafeLayerError(f"{where} holds a name this file system does not take: {error}", where=where)
    return None


@contextmanager
def _unfinished_folder(destination: Path) -> Iterator[Path]:
    """A locked folder beside `destination` that becomes it when the block ends well, and is gone otherwise."""
    folder = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    folder.mkdir(mode=0o700)
    lock = _lock_folder(folder)
    try:
        yield folder
        folder.chmod(0o755)
        _sync_file_system(folder)
        _rename(folder, destination)
        sync_folder(destination.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _rename(folder: Path, destination: Path) -> None:
    try:
        folder.rename(destination)
    except OSError as error:
        # Another process unpacked the same layer meanwhile.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _lock_folder(folder: Path) -> int | None:
    """Hold the folder's lock by the returned descriptor; None when another does, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_file_system(folder: Path) -> None:
    """Sync what was written: one syncfs(2) instead of an fsync for each of some thousand files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)
