"""Push to and pull from an OCI registry, with constant memory (distribution-spec 1.1).

Rules:

- Everything received is verified against its digest before it appears in the store; what is there is not fetched again.
- A blob download that broke off is continued by Range, in this call, the next, or the next process.
- An image's documents are stored after its blobs, so an image in the store is whole on the platform it was pulled for.
- Pushing sends blobs, then manifests, then the index: at no time does a registry have a document with a part missing.
- How requests are sent, authenticated and retried is in `registry_transport`.

    with RegistryClient("127.0.0.1:5050", credentials=BasicCredentials("reader", Secret("…"))) as client:
        image = client.pull_image(ref, Platform.host(), store, progress)
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import urllib3

from edge_contracts.image_ref import ImageDigest, ImageRef

from .errors import (
    BlobNotFoundError,
    DigestMismatchError,
    ImageFormatError,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailableError,
)
from .image_model import (
    DOCUMENT_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
    document_type,
    read_config,
    select_platform,
)
from .parallel import check, in_parallel
from .registry_answers import discard
from .registry_transport import MAX_PAUSE_S, BasicCredentials, Body, Call, RegistryTransport
from .registry_upload import (
    PIECE_BYTES,
    BlobUpload,
    NoUploadLog,
    UploadLog,
    UploadOptions,
    no_source,
    repository_scopes,
)
from .store import BlobWriter, ContentStore

__all__ = ["BasicCredentials", "Progress", "PulledImage", "PushResult", "RegistryClient"]

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, some times a megabyte; done may step back when a download starts anew."""

MountSource = Callable[[Descriptor], str | None]
"""The repository of the same registry that may have a blob, or None."""

_DEFAULT_REGISTRY = "docker.io"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push moved; bytes are of bodies, blobs and documents together."""

    digest: ImageDigest
    bytes_sent: int
    blobs_sent: int
    blobs_skipped: int


@dataclass(frozen=True, slots=True)
class PulledImage:
    """One platform's image, whole in the store.

    `ref` names by digest what was asked for (an index, often); `descriptor` is the platform's manifest's.
    """

    ref: ImageRef
    descriptor: Descriptor
    manifest: ImageManifest
    config: ImageConfig
    bytes_received: int


class RegistryClient:
    """One registry, one user. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(
        self,
        registry: str,
        *,
        credentials: BasicCredentials | None = None,
        ca_file: Path | None = None,
        timeout_s: float = 30,
        tls: bool | None = None,
        parallel: int = 1,
        max_pause_s: float = MAX_PAUSE_S,
        upload_log: UploadLog | None = None,
        piece_bytes: int = PIECE_BYTES,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            registry: `HOST` or `HOST:PORT`.
            ca_file: authorities trusted beside the system's.
            timeout_s: longest silence of the registry, not the whole transfer's time.
            tls: by default TLS everywhere but on loopback; True asks for it there too.
            parallel: blobs of one image that travel at a time.
            max_pause_s: longest Retry-After that is waited out.
            upload_log: where unfinished uploads are noted for the next process.
            piece_bytes: largest body sent; a larger blob goes in pieces.
            sleep: waits between tries.
            jitter: a number from 0 up to 1 for each wait.
        """
        self.registry = registry
        self._parallel = parallel
        self._upload_log = upload_log or NoUploadLog()
        self._piece_bytes = piece_bytes
        self._transport = RegistryTransport(
            registry,
            credentials=credentials,
            ca_file=ca_file,
            timeout_s=timeout_s,
            tls=tls,
            max_pause_s=max_pause_s,
            sleep=sleep,
            jitter=jitter,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def head_blob(self, repository: str, digest: ImageDigest) -> int | None:
        """Size of a blob in bytes, None when the repository has none such."""
        return self._retrying(lambda: self._head_blob(repository, digest, "pull"))

    def head_manifest(self, repository: str, reference: str | ImageDigest) -> Descriptor | None:
        """What a tag or digest names at this moment, None when nothing.

        Raises:
            RegistryError: the registry does not say the digest.
        """
        return self._retrying(lambda: self._head_manifest(repository, reference))

    def get_manifest(self, repository: str, reference: str | ImageDigest) -> tuple[Descriptor, bytes]:
        """Fetch an index or manifest by tag or digest.

        Raises:
            RegistryNotFoundError: there is none such.
            DigestMismatchError: it is not what its digest says.
        """
        return self._retrying(lambda: self._get_manifest(repository, reference))

    def pull_blob(
        self, repository: str, descriptor: Descriptor, store: ContentStore, progress: Progress | None = None
    ) -> int:
        """Fetch a blob into the store unless it is there.

        Returns:
            Bytes received, those of broken tries too.

        Raises:
            DigestMismatchError: the registry's bytes are wrong; nothing of them is kept.
            DiskFullError: no room; nothing is kept.
            RegistryUnavailableError: four tries failed; what came is kept, and continued next time.
        """
        return self._pull_blob(repository, descriptor, store, progress, threading.Event())

    def push_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        store: ContentStore,
        progress: Progress | None = None,
        *,
        mount_from: str | None = None,
    ) -> int:
        """Send a blob unless the repository has it, or can take it over from `mount_from` on the same registry.

        Returns:
            Bytes sent; 0 when it was there.
        """
        options = self._upload_options(mount_from, None, threading.Event())
        return self._push_blob(repository, descriptor, store, options, progress)

    def push_manifest(
        self, repository: str, reference: str | ImageDigest, data: bytes, media_type: str
    ) -> Descriptor:
        """Put an index or manifest under a tag or its digest.

        Raises:
            DigestMismatchError: the registry stored something else.
        """
        return self._retrying(lambda: self._push_manifest(repository, reference, data, media_type))

    def push_image(
        self,
        store: ContentStore,
        image: Descriptor,
        repository: str,
        tag: str | None = None,
        progress: Progress | None = None,
        *,
        mount_from: str | MountSource | None = None,
        fetch: Callable[[Descriptor], object] | None = None,
    ) -> PushResult:
        """Push an index with all its platforms, or a single manifest; each blob once, whoever shares it.

        Args:
            mount_from: repository of the same registry to take blobs over from, or what tells it for each blob.
            fetch: brings a blob into the store that neither the store nor the registry has; without it every blob must
                be in the store.

        Raises:
            BlobNotFoundError: a part of the image is not in the store; nothing was sent.
        """
        documents, blobs = _contents(store, image, whole=fetch is None)
        tally = _Tally(sum(blob.size for blob in blobs), progress)
        options = self._upload_options(mount_from, fetch, threading.Event())

        def push(blob: Descriptor) -> None:
            sent = self._push_blob(repository, blob, store, options, tally.of(blob))
            tally.add(blob, sent)

        in_parallel(push, blobs, self._parallel, options.stop)
        document_bytes = 0
        for document in documents:
            data = store.read_bytes(document.digest)
            self.push_manifest(repository, document.digest, data, document.media_type)
            document_bytes += len(data)
        if tag is not None:
            data = store.read_bytes(image.digest)
            self.push_manifest(repository, tag, data, image.media_type)
            document_bytes += len(data)
        return PushResult(
            image.digest,
            tally.moved_bytes + document_bytes,
            tally.moved_blobs,
            len(blobs) - tally.moved_blobs,
        )

    def pull_image(
        self, ref: ImageRef, platform: Platform, store: ContentStore, progress: Progress | None = None
    ) -> PulledImage:
        """Make an image whole in the store; a pinned one that is there is not asked the registry for.

        Raises:
            PlatformNotFoundError: the image is not built for `platform`; the message says for which it is.
            RegistryNotFoundError, DigestMismatchError, DiskFullError, RegistryAuthError, RegistryUnavailableError:
                as `pull_blob`; disk space is checked before the first blob.
        """
        if (ref.registry or _DEFAULT_REGISTRY).lower() != self.registry.lower():
            raise ValueError(f"image reference must be of registry {self.registry}, not '{ref}'")
        found = store.find_image(ref.digest, platform) if ref.digest is not None else None
        if found is not None:
            return PulledImage(ref, found.descriptor, found.manifest, found.config, 0)
        documents = self._pull_documents(ref, platform, store)
        manifest_descriptor, data = documents[-1]
        manifest = ImageManifest.from_bytes(data, f"image manifest {manifest_descriptor.digest}")
        received = sum(len(data) for _, data in documents) + self._pull_blobs(
            ref.repository, manifest.blobs, store, progress
        )
        config = read_config(store.read_bytes(manifest.config.digest), manifest, platform)
        for _, data in reversed(documents):
            store.put_bytes(data)
        pinned = ref.with_digest(documents[0][0].digest)
        return PulledImage(pinned, manifest_descriptor, manifest, config, received)

    def pull_whole(
        self,
        repository: str,
        reference: str | ImageDigest,
        store: ContentStore,
        progress: Progress | None = None,
    ) -> Descriptor:
        """Make an index with all of its manifests, or a single manifest, whole in the store, whatever it is for.

        Returns:
            Of the document that `reference` names.

        Raises:
            RegistryError, DigestMismatchError, DiskFullError, ImageFormatError: no document is stored then; blobs are
                kept, and not fetched again.
        """
        root, data = self.get_manifest(repository, reference)
        documents = [(root, data)]
        if root.media_type in INDEX_TYPES:
            entries = ImageIndex.from_bytes(data, f"image index {root.digest}").manifests
            documents += [self.get_manifest(repository, entry.digest) for entry in dict.fromkeys(entries)]
        manifests = [
            ImageManifest.from_bytes(each, f"image manifest {descriptor.digest}")
            for descriptor, each in documents
            if descriptor.media_type in MANIFEST_TYPES
        ]
        self._pull_blobs(repository, [blob for each in manifests for blob in each.blobs], store, progress)
        for _, each in reversed(documents):
            store.put_bytes(each)
        return root

    def get_referrers(self, repository: str, subject: ImageDigest) -> list[dict[str, Any]] | None:
        """Entries of what the registry lists as being about `subject`; None when it has no referrers API."""
        try:
            return self._retrying(lambda: self._get_referrers(repository, subject))
        except RegistryAuthError:
            # Some guard paths they do not know; who may read the image may read what is said about it.
            return None

    def _pull_documents(
        self, ref: ImageRef, platform: Platform, store: ContentStore
    ) -> list[tuple[Descriptor, bytes]]:
        """The document the reference names and, when that is an index, the platform's manifest."""
        descriptor, data = self.get_manifest(ref.repository, ref.digest or ref.tag or "latest")
        if descriptor.media_type not in INDEX_TYPES:
            return [(descriptor, data)]
        selected = select_platform(ImageIndex.from_bytes(data, f"image index {descriptor.digest}"), platform)
        _, manifest = self.get_manifest(ref.repository, selected.digest)
        return [(descriptor, data), (selected, manifest)]

    def _pull_blobs(
        self, repository: str, blobs: Iterable[Descriptor], store: ContentStore, progress: Progress | None
    ) -> int:
        each_once = {blob.digest: blob for blob in blobs}.values()
        missing = [blob for blob in each_once if not store.is_whole(blob)]
        store.require_space(sum(max(blob.size - store.pending_bytes(blob.digest), 0) for blob in missing))
        tally = _Tally(sum(blob.size for blob in missing), progress)
        stop = threading.Event()

        def pull(blob: Descriptor) -> None:
            tally.add(blob, self._pull_blob(repository, blob, store, tally.of(blob), stop))

        in_parallel(pull, missing, self._parallel, stop)
        return tally.moved_bytes

    def _pull_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        store: ContentStore,
        progress: Progress | None,
        stop: threading.Event,
    ) -> int:
        if store.is_whole(descriptor):
            return 0
        source = f"blob in repository '{repository}' of registry {self.registry}"
        download = _Download(descriptor, source, progress, stop)
        with store.resumable(descriptor.digest, descriptor.size, source) as part:
            resumed = part.size > 0
            self._retrying(lambda: self._fetch(repository, download, part))
            if resumed and part.digest != descriptor.digest:
                # The part may have been damaged on disk since: only bytes of one go accuse the registry.
                part.restart()
                self._retrying(lambda: self._fetch(repository, download, part))
        return download.received_bytes

    def _head_blob(self, repository: str, digest: ImageDigest, actions: str) -> int | None:
        response = self._send("HEAD", repository, f"blobs/{digest}", actions, {200, 404})
        discard(response)
        return int(response.headers.get("Content-Length", 0)) if response.status == 200 else None

    def _head_manifest(self, repository: str, reference: str | ImageDigest) -> Descriptor | None:
        accept = {"Accept": ", ".join(DOCUMENT_TYPES)}
        response = self._send(
            "HEAD", repository, f"manifests/{reference}", "pull", {200, 404}, headers=accept
        )
        discard(response)
        if response.status == 404:
            return None
        digest, size = response.headers.get("Docker-Content-Digest"), response.headers.get("Content-Length")
        if digest is None or size is None:
            raise self._transport.error(
                RegistryError, "does not say a manifest's digest and size", repository
            )
        return Descriptor(_media_type(response), ImageDigest.parse(digest), int(size))

    def _get_manifest(self, repository: str, reference: str | ImageDigest) -> tuple[Descriptor, bytes]:
        accept = {"Accept": ", ".join(DOCUMENT_TYPES)}
        response = self._send("GET", repository, f"manifests/{reference}", "pull", {200}, headers=accept)
        data = self._transport.read(response, repository, MAX_DOCUMENT_BYTES)
        found = ImageDigest.of(data)
        # Tags hold no colon; a digest given as text is as binding as a value.
        by_digest = ":" in str(reference)
        named = str(reference) if by_digest else response.headers.get("Docker-Content-Digest")
        where = f"manifest '{reference}' in repository '{repository}' of registry {self.registry}"
        if named is not None and named != str(found):
            raise DigestMismatchError(expected=named, found=str(found), where=where)
        media_type = document_type(data, where)
        if media_type not in INDEX_TYPES | MANIFEST_TYPES:
            raise ImageFormatError(
                f"{where} must be an image index or manifest, not {media_type!r}", where=where
            )
        return Descriptor(media_type, found, len(data)), data

    def _get_referrers(self, repository: str, subject: ImageDigest) -> list[dict[str, Any]] | None:
        tail = f"referrers/{subject}"
        # Registries without the API answer an unknown path in their own ways.
        response = self._send(
            "GET", repository, tail, "pull", {200, 400, 404, 405, 501}, headers={"Accept": OCI_INDEX}
        )
        if response.status != 200:
            discard(response)
            return None
        if response.headers.get("Link"):
            raise self._transport.error(RegistryError, "lists referrers on more than one page", repository)
        data = self._transport.read(response, repository, MAX_DOCUMENT_BYTES)
        ImageIndex.from_bytes(data, f"referrers of {subject} in repository '{repository}'")
        return list(json.loads(data)["manifests"])

    def _fetch(self, repository: str, download: _Download, part: BlobWriter) -> None:
        """One try to get the rest of a blob."""
        if part.size == download.descriptor.size:
            return
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        expected = {200, 206, 416} if part.size else {200}
        tail = f"blobs/{download.descriptor.digest}"
        response = self._send("GET", repository, tail, "pull", expected, headers=headers)
        with response:
            if response.status == 416:
                part.restart()
                raise self._transport.error(
                    RegistryUnavailableError, "does not have the rest of a blob", repository
                )
            if part.size and (response.status == 200 or _range_start(response) != part.size):
                self._start_over(repository, part, response)
            for chunk in self._transport.stream(response, repository):
                download.take(part, chunk)
        if part.size < download.descriptor.size:
            text = f"sent {part.size} of a blob's {download.descriptor.size} bytes and no more"
            raise self._transport.error(RegistryUnavailableError, text, repository)

    def _start_over(self, repository: str, part: BlobWriter, response: urllib3.BaseHTTPResponse) -> None:
        part.restart()
        if response.status == 206:
            raise self._transport.error(
                RegistryUnavailableError, "sent another range than was asked for", repository
            )

    def _upload_options(
        self,
        mount_from: str | MountSource | None,
        fetch: Callable[[Descriptor], object] | None,
        stop: threading.Event,
    ) -> UploadOptions:
        if isinstance(mount_from, str):
            source: MountSource = _always(mount_from)
        else:
            source = mount_from or no_source
        return UploadOptions(source, fetch, self._upload_log, stop, self._piece_bytes)

    def _push_blob(
        self,
        repository: str,
        blob: Descriptor,
        store: ContentStore,
        options: UploadOptions,
        progress: Progress | None,
    ) -> int:
        upload = BlobUpload(self._transport, repository, blob, store, options=options, progress=progress)
        self._retrying(upload.attempt)
        return upload.sent_bytes

    def _push_manifest(
        self, repository: str, reference: str | ImageDigest, data: bytes, media_type: str
    ) -> Descriptor:
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        response = self._send(
            "PUT",
            repository,
            f"manifests/{reference}",
            "pull,push",
            {201},
            headers=headers,
            body=lambda: data,
        )
        discard(response)
        digest = ImageDigest.of(data)
        stored = response.headers.get("Docker-Content-Digest", str(digest))
        if stored != str(digest):
            where = f"manifest '{reference}' stored in repository '{repository}' of registry {self.registry}"
            raise DigestMismatchError(expected=str(digest), found=stored, where=where)
        return Descriptor(media_type, digest, len(data))

    def _send(
        self,
        method: str,
        repository: str,
        tail: str,
        actions: str,
        expected: set[int],
        *,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
    ) -> urllib3.BaseHTTPResponse:
        scopes = repository_scopes(repository, actions)
        url = self._transport.url(repository, tail)
        return self._transport.send(
            Call(method, url, repository, scopes, frozenset(expected), headers or {}, body)
        )

    def _retrying(self, attempt: Callable[[], T]) -> T:
        return self._transport.retrying(attempt)


class _Download:
    """A blob on its way in: bounds, counts and reports."""

    def __init__(
        self, descriptor: Descriptor, source: str, progress: Progress | None, stop: threading.Event
    ) -> None:
        self.descriptor = descriptor
        self._stop = stop
        self._source = source
        self.received_bytes = 0
        self._progress = progress

    def take(self, part: BlobWriter, chunk: bytes) -> None:
        check(self._stop)
        size = self.descriptor.size
        if part.size + len(chunk) > size:
            raise DigestMismatchError(
                expected=f"{self.descriptor.digest} of {size} bytes",
                found=f"more than {size} bytes",
                where=self._source,
            )
        part.write(chunk)
        self.received_bytes += len(chunk)
        if self._progress is not None:
            self._progress(part.size, size)


class _Tally:
    """Progress over several blobs at a time, of which some turn out to need no transfer."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self.moved_bytes = 0
        self.moved_blobs = 0
        self._done: dict[ImageDigest, int] = {}
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()

    def of(self, blob: Descriptor) -> Progress:
        """Progress of one of them."""
        return lambda done_bytes, _total_bytes: self._report(blob, done_bytes)

    def add(self, blob: Descriptor, moved_bytes: int) -> None:
        """Count a finished blob."""
        with self._lock:
            self.moved_bytes += moved_bytes
            self.moved_blobs += moved_bytes > 0
        self._report(blob, blob.size)

    def _report(self, blob: Descriptor, done_bytes: int) -> None:
        with self._lock:
            self._done[blob.digest] = done_bytes
            if self._progress is not None:
                self._progress(sum(self._done.values()), self._total_bytes)


def _always(repository: str) -> MountSource:
    return lambda _blob: repository


def _contents(
    store: ContentStore, image: Descriptor, *, whole: bool
) -> tuple[list[Descriptor], list[Descriptor]]:
    """Documents in the order to push them, and the blobs they need, each once."""
    manifests = [image]
    if image.media_type in INDEX_TYPES:
        where = f"image index {image.digest}"
        manifests = list(ImageIndex.from_bytes(store.read_bytes(image.digest), where).manifests)
    blobs: dict[ImageDigest, Descriptor] = {}
    for manifest in manifests:
        where = f"image manifest {manifest.digest}"
        for blob in ImageManifest.from_bytes(store.read_bytes(manifest.digest), where).blobs:
            blobs.setdefault(blob.digest, blob)
    for digest in blobs:
        if whole and not store.has(digest):
            raise BlobNotFoundError(
                f"blob {digest} of image {image.digest} is not in the content store {store.root}"
            )
    return list(dict.fromkeys([*manifests, image])), list(blobs.values())


def _range_start(response: urllib3.BaseHTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _media_type(response: urllib3.BaseHTTPResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()
