"""Software bills of materials: CycloneDX 1.5 JSON, made from the lock in an image's dependencies layer.

Rules:

- The library components are the lock's packages, no more and no less, each with the hashes of the files the lock allows.
- What is not in the lock is not in it: the base, the scoring runtime's own files, the model and the script.
- The same lock gives the same bytes (no time, no random serial number), so that a new model sends no new SBOM.
- It is attached to each platform's manifest (`edge_containers.attachments`), and pushed and pulled with the image.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import uuid
from typing import Any

from edge_containers.attachments import attach, attachments, read_attachment
from edge_containers.image_archive import read_manifest, read_platform
from edge_containers.image_model import OCI_LAYER_GZIP, Descriptor, Platform
from edge_containers.store import ContentStore
from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageDigest
from publisher.builders.layer import ROLE_ANNOTATION
from publisher.image_plan import DEPENDENCIES_ROOT, LayerRole

CYCLONEDX = "application/vnd.cyclonedx+json"
SPEC_VERSION = "1.5"

_LOCK_PATH = f"{DEPENDENCIES_ROOT.strip('/')}/edgewright.lock"
_MAX_LOCK_BYTES = 8 << 20
_ENTRY = re.compile(r"(?m)^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)((?:[^\n]*\\\n)*[^\n]*)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# RFC 4122 asks for a namespace of one's own: this is that of nothing else.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "edgewright:sbom")


class NoSbomError(PublishError):
    """Nothing says what is in the image."""

    code = "no-sbom"


def make_sbom(lock: str, platform: Platform) -> bytes:
    """The SBOM of a lock (a requirements file with hashes) for one platform."""
    libraries = [_library(*match.groups()) for match in _ENTRY.finditer(lock)]
    digest = ImageDigest.of(f"{platform}\n{lock}".encode())
    root = f"edgewright-environment@{digest}"
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, str(digest))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "edgewright-environment",
                "version": str(digest),
                "properties": [{"name": "edgewright:platform", "value": str(platform)}],
            }
        },
        "components": libraries,
        "dependencies": [{"ref": root, "dependsOn": [each["bom-ref"] for each in libraries]}],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def sbom_of(store: ContentStore, manifest: Descriptor) -> bytes:
    """The SBOM attached to a platform's manifest, made and attached if there is none yet.

    Raises:
        NoSbomError: the image carries neither an SBOM nor a lock.
    """
    present = attachments(store, manifest.digest, CYCLONEDX)
    if present:
        return read_attachment(store, present[0])
    sbom = make_sbom(read_lock(store, manifest), read_platform(store, manifest))
    attach(store, manifest, CYCLONEDX, sbom)
    return sbom


def read_lock(store: ContentStore, manifest: Descriptor) -> str:
    """The lock inside a manifest's dependencies layer.

    Raises:
        NoSbomError: there is none.
    """
    for layer in read_manifest(store, manifest).layers:
        if layer.annotations.get(ROLE_ANNOTATION) == LayerRole.DEPENDENCIES:
            found = _lock_in(store, layer)
            if found is not None:
                return found
    raise NoSbomError(
        f"image manifest {manifest.digest} has no SBOM attached and no lock to make one from: it was not built here "
        "by the default builder",
        where=str(manifest.digest),
    )


def _lock_in(store: ContentStore, layer: Descriptor) -> str | None:
    with store.open(layer.digest) as blob:
        source = gzip.GzipFile(fileobj=blob) if layer.media_type == OCI_LAYER_GZIP else blob
        with tarfile.open(fileobj=source, mode="r|") as tar:
            # Entries are sorted, so what comes before is little.
            for member in tar:
                if member.name == _LOCK_PATH and member.isreg() and member.size <= _MAX_LOCK_BYTES:
                    file = tar.extractfile(member)
                    return file.read().decode() if file is not None else None
    return None


def _library(name: str, version: str, rest: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version.replace('+', '%2B')}"
    hashes = [{"alg": "SHA-256", "content": each} for each in sorted(set(_HASH.findall(rest)))]
    library: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    return library | ({"hashes": hashes} if hashes else {})
