"""What is said about an image beside it: SBOMs, signatures, attestations; kept in a store, pushed and pulled with it.

Rules:

- An attachment is a manifest whose `subject` is the image's index, one of its manifests, or another attachment
  (image-spec 1.1, "Guidelines for Artifact Usage").
- A registry lists them by its referrers API. Where it has none, the tag `sha256-HEX` of the subject names an index of
  them (distribution-spec 1.1, "Referrers Tag Schema"); the same names are used in a store.
- Cosign's older tags (`sha256-HEX.sig`, `.att`, `.sbom`) are taken along as they are. One that the target registry has
  already is left as it is there: somebody may have signed since.
- Nothing is rewritten, so what was signed stays signed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edge_contracts.image_ref import ImageDigest

from .errors import ContainerError, RegistryNotFoundError
from .image_archive import manifests_of, read_manifest
from .image_model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    canonical_json,
    document_type,
)
from .store import ContentStore

if TYPE_CHECKING:
    from .registry_client import RegistryClient

COSIGN_SUFFIXES = (".sig", ".att", ".sbom")
MAX_ATTACHMENTS = 64
"""Of one image; the fallback index is rewritten at each push, so it must not grow without end."""

_NAME = re.compile(r"sha256-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?")


def attach(
    store: ContentStore,
    subject: Descriptor,
    artifact_type: str,
    data: bytes,
    annotations: Mapping[str, str] | None = None,
) -> Descriptor:
    """Store `data` as something said about `subject`; the same data twice is one attachment."""
    layer = store.put_bytes(data).describe(artifact_type)
    config = store.put_bytes(b"{}").describe(OCI_EMPTY)
    bare = Descriptor(subject.media_type, subject.digest, subject.size)
    manifest = ImageManifest(config, (layer,), annotations or {}, artifact_type, bare)
    descriptor = store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST)
    _list(store, subject.digest, [_entry(store, descriptor)])
    return descriptor


def attachments(
    store: ContentStore, subject: ImageDigest, artifact_type: str | None = None
) -> list[Descriptor]:
    """Manifests in the store that are about `subject`, of one type or of all."""
    return [
        Descriptor.from_dict(entry)
        for entry in _listed(store, subject)
        if artifact_type in (None, entry.get("artifactType"))
    ]


def read_attachment(store: ContentStore, attachment: Descriptor) -> bytes:
    """The content of an attachment of one layer."""
    layers = read_manifest(store, attachment).layers
    if len(layers) != 1:
        raise ContainerError(f"attachment {attachment.digest} must have one layer, not {len(layers)}")
    return store.read_bytes(layers[0].digest)


def push_attachments(client: RegistryClient, store: ContentStore, image: Descriptor, repository: str) -> int:
    """Send what the store has about an image that the repository has; returns the bytes sent."""
    sent = 0
    for subject in _walk(store, image):
        sent += _push_referrers(client, store, subject, repository)
        for suffix in COSIGN_SUFFIXES:
            tag = f"{_tag(subject)}{suffix}"
            named = store.resolve(tag)
            if named is not None and client.head_manifest(repository, tag) is None:
                sent += client.push_image(store, named, repository, tag).bytes_sent
    return sent


def _push_referrers(
    client: RegistryClient, store: ContentStore, subject: ImageDigest, repository: str
) -> int:
    """Send those that the registry does not list: one that is there unlisted was left so by a broken push."""
    kept = attachments(store, subject)
    if not kept:
        return 0
    by_api = client.get_referrers(repository, subject)
    listed = by_api if by_api is not None else _fallback(client, repository, subject)
    digests = {entry["digest"] for entry in listed}
    missing = [each for each in kept if str(each.digest) not in digests]
    sent = sum(client.push_image(store, each, repository).bytes_sent for each in missing)
    if missing and by_api is None:
        merged = _merged(listed, [_entry(store, each) for each in missing])
        data = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": merged})
        client.push_manifest(repository, _tag(subject), data, OCI_INDEX)
        sent += len(data)
    return sent


def pull_attachments(client: RegistryClient, repository: str, image: Descriptor, store: ContentStore) -> int:
    """Take over what a repository has about an image that the store has; returns how many came."""
    found = 0
    pending = [image.digest, *(each.digest for each in manifests_of(store, image))]
    seen: set[ImageDigest] = set()
    while pending:
        subject = pending.pop(0)
        if subject in seen:
            continue
        seen.add(subject)
        listed = [Descriptor.from_dict(each) for each in _remote(client, repository, subject)]
        for each in listed:
            client.pull_whole(repository, each.digest, store)
        _list(store, subject, [_entry(store, each) for each in listed])
        pending += [each.digest for each in listed]
        found += len(listed) + sum(
            _pull_tag(client, repository, subject, suffix, store) for suffix in COSIGN_SUFFIXES
        )
        if found > MAX_ATTACHMENTS:
            raise ContainerError(
                f"image {image.digest} in repository '{repository}' has more than {MAX_ATTACHMENTS} attachments"
            )
    return found


def forget_orphans(store: ContentStore, keep: Iterable[ImageDigest]) -> None:
    """Take away the names of attachments whose subject is in none of `keep` and in no named image."""
    tags = store.tags()
    subjects = {name: match[1] for name in tags if (match := _NAME.fullmatch(name))}
    live = store.reachable([*keep, *(each.digest for name, each in tags.items() if name not in subjects)])
    while True:
        of_live = [name for name, subject in subjects.items() if subject in live]
        more = store.reachable(tags[name].digest for name in of_live)
        if more <= live:
            break
        live |= more
    for name, subject in subjects.items():
        if subject not in live:
            store.untag(name)


def _walk(store: ContentStore, image: Descriptor) -> list[ImageDigest]:
    """Digests that may have attachments: the image, its manifests, and attachments in turn."""
    found = dict.fromkeys([image.digest, *(each.digest for each in manifests_of(store, image))])
    pending = list(found)
    while pending:
        for each in attachments(store, pending.pop(0)):
            if each.digest not in found:
                found[each.digest] = None
                pending.append(each.digest)
    return list(found)


def _pull_tag(
    client: RegistryClient, repository: str, subject: ImageDigest, suffix: str, store: ContentStore
) -> int:
    tag = f"{_tag(subject)}{suffix}"
    if client.head_manifest(repository, tag) is None:
        return 0
    store.tag(tag, client.pull_whole(repository, tag, store))
    return 1


def _remote(client: RegistryClient, repository: str, subject: ImageDigest) -> list[dict[str, Any]]:
    by_api = client.get_referrers(repository, subject)
    return by_api if by_api is not None else _fallback(client, repository, subject)


def _fallback(client: RegistryClient, repository: str, subject: ImageDigest) -> list[dict[str, Any]]:
    try:
        _, data = client.get_manifest(repository, _tag(subject))
    except RegistryNotFoundError:
        return []
    return _entries(data, f"referrers of {subject} in repository '{repository}'")


def _list(store: ContentStore, subject: ImageDigest, entries: list[dict[str, Any]]) -> None:
    listed = _listed(store, subject)
    merged = _merged(listed, entries)
    if merged != listed:
        data = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": merged})
        store.tag(_tag(subject), store.put_bytes(data).describe(OCI_INDEX))


def _listed(store: ContentStore, subject: ImageDigest) -> list[dict[str, Any]]:
    index = store.resolve(_tag(subject))
    return _entries(store.read_bytes(index.digest), f"referrers of {subject}") if index is not None else []


def _entries(data: bytes, where: str) -> list[dict[str, Any]]:
    ImageIndex.from_bytes(data, where)  # every entry is a descriptor
    return list(json.loads(data)["manifests"])


def _merged(present: list[dict[str, Any]], added: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({entry["digest"]: entry for entry in [*present, *added]}.values())


def _entry(store: ContentStore, attachment: Descriptor) -> dict[str, Any]:
    """An attachment as an index of referrers lists it: with its type and annotations (distribution-spec 1.1)."""
    data = store.read_bytes(attachment.digest)
    media_type = document_type(data, str(attachment.digest))
    entry: dict[str, Any] = {"mediaType": media_type, "digest": str(attachment.digest), "size": len(data)}
    if media_type in MANIFEST_TYPES:
        manifest = ImageManifest.from_bytes(data, f"attachment {attachment.digest}")
        entry["artifactType"] = manifest.artifact_type or manifest.config.media_type
        if manifest.annotations:
            entry["annotations"] = dict(manifest.annotations)
    elif media_type not in INDEX_TYPES:
        raise ContainerError(f"attachment {attachment.digest} must be a manifest, not {media_type!r}")
    return entry


def _tag(subject: ImageDigest) -> str:
    return f"{subject.algorithm}-{subject.hex}"
