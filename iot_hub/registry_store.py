"""The embedded registry's disk: one content store for all repositories, and links that say which of them has what.

    ROOT/blobs/sha256/HEX                       every blob once (an OCI layout, edge_containers.store)
    ROOT/repositories/NAME/_blobs/HEX           empty: the repository has this blob
    ROOT/repositories/NAME/_manifests/HEX       holds the media type it was pushed with
    ROOT/repositories/NAME/_tags/TAG            holds the digest

Rules: a repository serves only what was pushed or mounted to it, though the bytes may be there for another one;
a blob is written whole before its link, a manifest's blobs before the manifest, the manifest before its tag, so a
crash leaves at worst blobs that nothing names, which the next start removes. The underscores keep these folders
apart from repositories' names, which cannot begin with one.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edge_containers.errors import DigestMismatchError, ImageFormatError
from edge_containers.image_model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    document_type,
)
from edge_containers.store import BlobWriter, ContentStore
from edge_contracts.image_ref import ImageDigest

log = logging.getLogger(__name__)

# Distribution spec, "Pulling manifests": the forms of <name> and <reference>.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
NAME_LIMIT = 255


class MissingBlobError(ImageFormatError):
    """A manifest names a blob or manifest that its repository does not have."""

    code = "missing-blob"


def is_repository_name(name: str) -> bool:
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StoredManifest:
    digest: ImageDigest
    media_type: str
    data: bytes


class RegistryStore:
    """Blobs, manifests and tags by repository. Names and tags given here must have passed the checks above."""

    def __init__(self, root: Path) -> None:
        """Opens or makes the store and removes what an earlier process left unfinished.

        No other process may push into `root` at that time.
        """
        self.content = ContentStore(root)
        self._repositories = root / "repositories"
        self._repositories.mkdir(exist_ok=True)
        self.content.collect_garbage(keep=self._linked_digests())

    def has_repository(self, repository: str) -> bool:
        return any((self._repositories / repository / kind).is_dir() for kind in ("_blobs", "_manifests"))

    def blob_path(self, repository: str, digest: ImageDigest) -> Path | None:
        """The blob's file if this repository has it."""
        path = self.content.path(digest)
        return path if self._link(repository, "_blobs", digest.hex).is_file() and path.is_file() else None

    def link_blob(self, repository: str, digest: ImageDigest) -> None:
        """Give the repository a blob that the content store has."""
        _write(self._link(repository, "_blobs", digest.hex), "")

    def find_manifest(self, repository: str, reference: str) -> StoredManifest | None:
        """By tag or digest; None when the repository has no such manifest.

        Raises:
            ContractError: the reference looks like a digest and is not one.
        """
        digest_text: str | None = reference
        if ":" not in reference:
            digest_text = _read(self._link(repository, "_tags", reference)) if is_tag(reference) else None
        if digest_text is None:
            return None
        digest = ImageDigest.parse(digest_text)
        media_type = _read(self._link(repository, "_manifests", digest.hex))
        if media_type is None or not self.content.has(digest):
            return None
        try:
            return StoredManifest(digest, media_type, self.content.read_bytes(digest))
        except DigestMismatchError as error:
            log.error("registry: %s; it has to be pushed again", error)
            return None

    def put_manifest(self, repository: str, data: bytes, content_type: str, tag: str | None) -> ImageDigest:
        """Store a manifest or index whose parts the repository has already, and move the tag to it.

        Raises:
            ImageFormatError: not a manifest, or not of the type it is said to be.
            MissingBlobError: a part of it is absent, or has another size than the manifest says.
            DiskFullError: no room; nothing was changed.
        """
        found = document_type(data, "manifest")
        if content_type not in INDEX_TYPES | MANIFEST_TYPES or found != content_type:
            raise ImageFormatError(
                f"manifest must be of the type in Content-Type, {content_type!r}, not {found!r}"
            )
        if content_type in INDEX_TYPES:
            for part in ImageIndex.from_bytes(data, "index").manifests:
                self._require(repository, "_manifests", part)
        else:
            for part in ImageManifest.from_bytes(data, "manifest").blobs:
                self._require(repository, "_blobs", part)
        digest = self.content.put_bytes(data).digest
        _write(self._link(repository, "_manifests", digest.hex), content_type)
        if tag is not None:
            _write(self._link(repository, "_tags", tag), str(digest))
        return digest

    def tags(self, repository: str) -> list[str]:
        folder = self._repositories / repository / "_tags"
        return (
            sorted(entry.name for entry in folder.iterdir() if is_tag(entry.name)) if folder.is_dir() else []
        )

    def _require(self, repository: str, kind: str, part: Descriptor) -> None:
        if not self._link(repository, kind, part.digest.hex).is_file() or not self.content.is_whole(part):
            raise MissingBlobError(
                f"manifest names {part.digest} of {part.size} bytes; push it to {repository} first",
                where=str(part.digest),
            )

    def _link(self, repository: str, kind: str, name: str) -> Path:
        return self._repositories / repository / kind / name

    def _linked_digests(self) -> Iterator[ImageDigest]:
        for folder, _folders, names in os.walk(self._repositories):
            if Path(folder).name in ("_blobs", "_manifests"):
                yield from (
                    ImageDigest("sha256", name) for name in names if re.fullmatch("[0-9a-f]{64}", name)
                )


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(path: Path, text: str) -> None:
    """By rename; the temporary name is no tag and no digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Upload:
    """One blob on its way in. It ends by `finish` or `abort`; neither leaves anything but a whole blob."""

    def __init__(self, store: RegistryStore, repository: str) -> None:
        self.id = secrets.token_hex(16)
        self.repository = repository
        self.touched_at = time.monotonic()
        self._store = store
        self._exits = ExitStack()
        self._writer: BlobWriter = self._exits.enter_context(store.content.writer())

    @property
    def size(self) -> int:
        return self._writer.size

    def write(self, data: bytes) -> None:
        """Raises DiskFullError or OSError; the upload must be aborted then."""
        self.touched_at = time.monotonic()
        self._writer.write(data)

    def finish(self, expected: ImageDigest) -> None:
        """Make it a blob of the repository.

        Raises:
            DigestMismatchError: the bytes are not `expected`; they are gone.
        """
        if self._writer.digest != expected:
            found = str(self._writer.digest)
            self.abort()
            raise DigestMismatchError(
                expected=str(expected), found=found, where=f"upload to {self.repository}"
            )
        self._exits.close()
        self._store.link_blob(self.repository, expected)

    def abort(self, error: BaseException | None = None) -> None:
        """Throw away what came; an error is told to the store's writer, which may raise a clearer one."""
        reason = error or InterruptedError("upload aborted")
        self._exits.__exit__(type(reason), reason, reason.__traceback__)
