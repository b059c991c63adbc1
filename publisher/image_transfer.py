"""Images on their way out of and into a workspace: to registries, into archives, and back.

Rules:

- A tag is moved last: whoever pulls by it finds the image, its SBOM and its signatures whole.
- A tag that names something this workspace did not put there is not moved without `force`. (A registry has no
  compare-and-swap, so of two pushes in the same second the later one wins.)
- Digests never change on the way, so signatures stay valid; attachments travel along.
- What is pulled is listed when every blob is there and verified; what came before a failure is not fetched again.

`Image.push`, `Image.export`, `Image.pull` and `Image.remote_tags` are thin: what they do is here.
"""

from __future__ import annotations

import json
import secrets
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from edge_containers.attachments import pull_attachments, push_attachments
from edge_containers.image_archive import (
    add_images,
    image_parts,
    manifests_of,
    platform_manifest,
    read_manifest,
)
from edge_containers.image_model import Descriptor, Platform
from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageDigest, ImageRef
from publisher.build_request import check_image_name
from publisher.database import next_version
from publisher.errors import UsageError
from publisher.garbage import STORE_LOCK
from publisher.sbom import NoSbomError, sbom_of
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace, now_text

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials, RegistryClient
    from publisher.images import Image

PARALLEL = 4
"""Blobs at a time: enough to hide a registry's answers, few enough for its rate limits."""

MAX_PAUSE_S = 60.0
"""Longest Retry-After waited out; someone is watching, and a registry's window is often a minute."""


class TagMovedError(PublishError):
    """A tag names something on the registry that this workspace did not put there."""

    code = "tag-moved"


class TagState(StrEnum):
    """A tag on the registry against what was recorded here."""

    SAME = "same"
    MOVED = "moved"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class PushedImage:
    """Where an image went: `location` is `registry/repository@sha256:…`, `tagged` the same by its tag."""

    location: ImageRef
    tagged: ImageRef
    bytes_sent: int
    blobs_sent: int
    blobs_skipped: int


@dataclass(frozen=True, slots=True)
class RemoteTag:
    """A tag as it was recorded here and as the registry has it now."""

    reference: ImageRef
    recorded: ImageDigest
    found: ImageDigest | None

    @property
    def state(self) -> TagState:
        if self.found is None:
            return TagState.GONE
        return TagState.SAME if self.found == self.recorded else TagState.MOVED


@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is reached: as whom, by whose certificate authority, and with how much patience."""

    credentials: BasicCredentials | None = None
    ca_file: Path | None = None
    timeout_s: float = 30
    sleep: Callable[[float], None] = time.sleep

    def client(self, workspace: Workspace, registry: str) -> RegistryClient:
        """For transfers of one command."""
        from edge_containers.registry_client import RegistryClient
        from edge_containers.registry_upload import UploadFiles

        return RegistryClient(
            registry,
            credentials=self.credentials,
            ca_file=self.ca_file,
            timeout_s=self.timeout_s,
            sleep=self.sleep,
            parallel=PARALLEL,
            max_pause_s=MAX_PAUSE_S,
            upload_log=UploadFiles(workspace.cache / "uploads"),
        )


AccessOf = Callable[[str], Access]
"""Tells how to reach a registry."""


def push_image(
    image: Image, target: ImageRef, access: Access, *, force: bool = False, steps: Steps = no_steps
) -> PushedImage:
    """Push to `target`, which names a registry and may name a tag (the version by default).

    Raises:
        TagMovedError: the tag names something else there, and `force` was not asked for.
        RegistryError: what the registry refused; blobs already sent are found there next time.
    """
    from publisher.bases.mounts import mounts_of

    workspace, registry = image.workspace, _registry_of(target)
    tagged = ImageRef(registry, target.repository, target.tag or str(image.version))
    base_repository, other_repository = mounts_of(registry), _other_repository(workspace, tagged)
    with (
        access.client(workspace, registry) as client,
        workspace.lock(STORE_LOCK, shared=True),
        steps(f"pushing {image.id} to {registry}") as progress,
    ):
        if not force:
            _check_tag(workspace, client, tagged, image.digest)
        _attach_sboms(workspace, image.descriptor)
        result = client.push_image(
            workspace.store,
            image.descriptor,
            tagged.repository,
            progress=progress,
            mount_from=lambda blob: base_repository(blob) or other_repository,
            fetch=_base_fetcher(workspace),
        )
        attached_bytes = push_attachments(client, workspace.store, image.descriptor, tagged.repository)
        data = workspace.store.read_bytes(image.digest)
        client.push_manifest(tagged.repository, tagged.tag or "", data, image.descriptor.media_type)
    location = tagged.with_digest(image.digest)
    _note_location(workspace, image.id, location, tagged)
    workspace.audit("image push", image.id, location=str(location), tag=str(tagged))
    sent = result.bytes_sent + attached_bytes + len(data)
    return PushedImage(location, tagged, sent, result.blobs_sent, result.blobs_skipped)


def pull_image(
    workspace: Workspace,
    ref: ImageRef,
    access: Access,
    *,
    name: str | None = None,
    steps: Steps = no_steps,
) -> str:
    """Bring an image with all its platforms and attachments into the workspace; returns its id there.

    What is there already, under the same name with the same digest, is not listed twice.

    Raises:
        RegistryError, DigestMismatchError, DiskFullError, ImageFormatError: nothing is listed then.
    """
    registry, name = _registry_of(ref), name or ref.repository.rpartition("/")[2]
    check_image_name(name)
    with (
        access.client(workspace, registry) as client,
        workspace.lock(f"image-{name}"),
        workspace.lock(STORE_LOCK, shared=True),
        steps(f"pulling {ref}") as progress,
    ):
        image = client.pull_whole(
            ref.repository, ref.digest or ref.tag or "latest", workspace.store, progress
        )
        pull_attachments(client, ref.repository, image, workspace.store)
        identity = _listed_as(workspace, name, image.digest) or _list_pulled(workspace, name, image)
    location = ref.with_digest(image.digest)
    tagged = ref if ref.digest is None else None
    _note_location(workspace, identity, location, tagged)
    workspace.audit("image pull", identity, location=str(location))
    return identity


def remote_tags(image: Image, access_of: AccessOf) -> list[RemoteTag]:
    """What the registries say now about each tag that was pushed or pulled as this image.

    Raises:
        RegistryError: one of them does not answer.
    """
    with image.workspace.database.read() as db:
        rows = db.execute(
            "SELECT * FROM registry_tags WHERE image = ? ORDER BY registry, repository, tag", (image.id,)
        ).fetchall()
    found = []
    for row in rows:
        reference = ImageRef(row["registry"], row["repository"], row["tag"])
        with access_of(row["registry"]).client(image.workspace, row["registry"]) as client:
            named = client.head_manifest(reference.repository, row["tag"])
        recorded = ImageDigest.parse(row["digest"])
        found.append(RemoteTag(reference, recorded, named.digest if named is not None else None))
    return found


def export_image(image: Image, output_file: Path, platform: Platform | None = None) -> int:
    """Write the image, or one platform of it, as a file for `docker load` and skopeo (`oci-archive:FILE`).

    Returns:
        Bytes written. The file appears whole or not at all.

    Raises:
        PlatformNotFoundError: the image is not built for `platform`.
        PublishError: the file cannot be written.
    """
    store, descriptor = image.workspace.store, image.descriptor
    if platform is not None:
        descriptor = platform_manifest(store, descriptor, platform)
    _fetch_base(image.workspace, descriptor)
    part = output_file.with_name(f".{output_file.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            add_images(tar, store, {image.id: descriptor})
        part.replace(output_file)
    except OSError as error:
        raise PublishError(
            f"{output_file} cannot be written: {error.strerror}", where=str(output_file)
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return output_file.stat().st_size


def _fetch_base(workspace: Workspace, image: Descriptor) -> None:
    """Bring the layers that a base left in its registry, for a file that has to hold them."""
    fetch = _base_fetcher(workspace)
    for blob in image_parts(workspace.store, image):
        if not workspace.store.has(blob.digest):
            fetch(blob)


def _base_fetcher(workspace: Workspace) -> Callable[[Descriptor], None]:
    from publisher.bases.mounts import fetcher
    from publisher.credentials.chain import credentials_for

    return fetcher(workspace.store, lambda registry: credentials_for(registry, workspace=workspace))


def _registry_of(ref: ImageRef) -> str:
    if ref.registry is None:
        raise UsageError(
            f"reference must name its registry, as registry.example.com/{ref}, not {str(ref)!r}",
            where=str(ref),
        )
    return ref.registry


def _check_tag(workspace: Workspace, client: RegistryClient, tagged: ImageRef, digest: ImageDigest) -> None:
    present = client.head_manifest(tagged.repository, tagged.tag or "")
    if present is None or present.digest == digest:
        return
    with workspace.database.read() as db:
        row = db.execute(
            "SELECT digest FROM registry_tags WHERE registry = ? AND repository = ? AND tag = ?",
            (tagged.registry, tagged.repository, tagged.tag),
        ).fetchone()
    if row is None or row["digest"] != str(present.digest):
        expected = (
            f"expected {row['digest']}, as this workspace left it" if row is not None else "expected nothing"
        )
        raise TagMovedError(
            f"tag {tagged} names something that this workspace did not put there: {expected}, found "
            f"{present.digest}; push under another tag (-t NAME:TAG), or with --force to move it",
            where=str(tagged),
            next_command=f"edgewright image pull {tagged}",
        )


def _attach_sboms(workspace: Workspace, image: Descriptor) -> None:
    for manifest in manifests_of(workspace.store, image):
        try:
            sbom_of(workspace.store, manifest)
        except NoSbomError:
            continue  # not every image has a lock: one that was pulled, or built from a Dockerfile


def _other_repository(workspace: Workspace, target: ImageRef) -> str | None:
    """The repository of the same registry that was last pushed to: its blobs may be mounted."""
    with workspace.database.read() as db:
        row = db.execute(
            "SELECT repository FROM registry_tags WHERE registry = ? AND repository <> ? ORDER BY time DESC LIMIT 1",
            (target.registry, target.repository),
        ).fetchone()
    return row["repository"] if row is not None else None


def _note_location(workspace: Workspace, identity: str, location: ImageRef, tagged: ImageRef | None) -> None:
    name, _, version = identity.partition(":")
    with workspace.database.transaction() as db:
        db.execute(
            "UPDATE images SET image_location = ? WHERE name = ? AND version = ?",
            (str(location), name, int(version)),
        )
        if tagged is not None:
            row = (tagged.registry, tagged.repository, tagged.tag or "latest", str(location.digest), identity)
            db.execute("INSERT OR REPLACE INTO registry_tags VALUES (?, ?, ?, ?, ?, ?)", (*row, now_text()))


def _listed_as(workspace: Workspace, name: str, digest: ImageDigest) -> str | None:
    with workspace.database.read() as db:
        row = db.execute(
            "SELECT version FROM images WHERE name = ? AND digest = ? ORDER BY version DESC",
            (name, str(digest)),
        ).fetchone()
    return f"{name}:{row['version']}" if row is not None else None


def _list_pulled(workspace: Workspace, name: str, image: Descriptor) -> str:
    """Name a pulled image: its row and its tag appear together."""
    store = workspace.store
    layers = {
        each.digest: each.size
        for one in manifests_of(store, image)
        for each in read_manifest(store, one).layers
    }
    with workspace.database.transaction() as db:
        version = next_version(db, "image", name)
        row = {
            "name": name,
            "version": version,
            "created_time": now_text(),
            "tags": json.dumps({}),
            "properties": json.dumps({}),
            "digest": str(image.digest),
            "size": sum(layers.values()),
            "build_log": "",
            "build_seconds": 0.0,
        }
        columns, values = ", ".join(row), ", ".join(f":{column}" for column in row)
        db.execute(f"INSERT INTO images ({columns}) VALUES ({values})", row)
        store.tag(f"{name}:{version}", image)
    return f"{name}:{version}"
