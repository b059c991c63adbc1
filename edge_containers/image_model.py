"""OCI image documents as values: descriptors, indexes, manifests, configs, platforms.

Rules (image-spec 1.1 unless named otherwise):

- A document is read strictly where we use it, and every complaint names the path inside it (`layers[2].digest`).
- Documents that travel are never rewritten: their bytes are their identity. `to_bytes` is for documents built here and
  is canonical (sorted keys, no spaces, ASCII), so that the same input gives the same digest.
- One document is either an index or a manifest. One that could be read as both is refused (CVE-2021-41190).
- Docker's schema 2 types are read beside the OCI ones; only OCI types are written.
- `arm64` and `arm64/v8` are the same platform.

    index = ImageIndex.from_bytes(store.read_bytes(digest))
    manifest = ImageManifest.from_bytes(store.read_bytes(select_platform(index, Platform.parse("linux/arm64")).digest))
"""

from __future__ import annotations

import json
import platform as host_platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest

from .errors import ImageFormatError, PlatformNotFoundError

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
DOCUMENT_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

# distribution-spec 1.1, "Pushing Manifests": registries take manifests of at least 4 MiB; nobody needs more.
MAX_DOCUMENT_BYTES = 4 << 20

_ARCHITECTURES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", None),
    "arm64": ("arm64", None),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "riscv64": ("riscv64", None),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in the names of Go's GOOS and GOARCH."""

    os: str
    architecture: str
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.architecture == "arm64" and self.variant == "v8":
            object.__setattr__(self, "variant", None)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `linux/arm64` or `linux/arm/v7`."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(part.isalnum() for part in parts):
            raise ImageFormatError(
                f"platform must be 'os/architecture' or 'os/architecture/variant', not {text!r}"
            )
        return cls(*parts)

    @classmethod
    def host(cls) -> Self:
        """The platform this interpreter runs on."""
        machine = host_platform.machine().lower()
        architecture, variant = _ARCHITECTURES.get(machine, (machine, None))
        return cls(sys.platform, architecture, variant)

    def runs(self, image: Platform) -> bool:
        """Whether an image made for `image` is one for this platform; no variant here takes any variant there."""
        same = (self.os, self.architecture) == (image.os, image.architecture)
        return same and self.variant in (None, image.variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed, sized link to content."""

    media_type: str
    digest: ImageDigest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None

    @classmethod
    def from_dict(cls, document: object, where: str = "descriptor") -> Self:
        """Read one descriptor; `where` is its path in the enclosing document."""
        fields = _Fields(document, where)
        platform = fields.optional("platform", dict)
        return cls(
            media_type=fields.required("mediaType", str),
            digest=fields.digest("digest"),
            size=fields.size("size"),
            annotations=fields.strings("annotations"),
            platform=_platform(platform, f"{where}.platform") if platform is not None else None,
        )

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform is not None:
            document["platform"] = _platform_dict(self.platform)
        return document

    def annotated(self, **annotations: str) -> Self:
        """A copy with further annotations; dots in a name are given as a `**{...}` mapping."""
        return replace(self, annotations={**self.annotations, **annotations})


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The list of an image's per-platform manifests."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "image index") -> Self:
        fields = _document(data, where, INDEX_TYPES, foreign=("layers", "config"))
        entries = fields.required("manifests", list)
        return cls(
            manifests=tuple(
                Descriptor.from_dict(entry, f"{where}: manifests[{n}]") for n, entry in enumerate(entries)
            ),
            annotations=fields.strings("annotations"),
        )

    def to_bytes(self) -> bytes:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [manifest.to_dict() for manifest in self.manifests],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        return canonical_json(document)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """Platforms that can run; attestations are listed as `unknown/unknown` and are left out."""
        named = (manifest.platform for manifest in self.manifests)
        return tuple(platform for platform in named if platform is not None and platform.os != "unknown")


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One platform's image: its config and its layers, lowest first.

    With a `subject` it is something said about that image instead, of the kind `artifact_type`: an SBOM, a signature.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None
    subject: Descriptor | None = None

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "image manifest") -> Self:
        fields = _document(data, where, MANIFEST_TYPES, foreign=("manifests",))
        layers = fields.required("layers", list)
        subject = fields.optional("subject", dict)
        return cls(
            config=Descriptor.from_dict(fields.required("config", dict), f"{where}: config"),
            layers=tuple(
                Descriptor.from_dict(layer, f"{where}: layers[{n}]") for n, layer in enumerate(layers)
            ),
            annotations=fields.strings("annotations"),
            artifact_type=fields.optional("artifactType", str),
            subject=Descriptor.from_dict(subject, f"{where}: subject") if subject is not None else None,
        )

    def to_bytes(self) -> bytes:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.config.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.artifact_type is not None:
            document["artifactType"] = self.artifact_type
        if self.subject is not None:
            document["subject"] = self.subject.to_dict()
        return canonical_json(document)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything but the manifest itself, in the order it is worth fetching: the config is tiny and comes first."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What a runtime needs to know to start the image.

    `created` is RFC 3339 and the epoch by default, so that two builds of one input are one image. `env` keeps its
    order and is a list of `NAME=value`.
    """

    platform: Platform
    diff_ids: tuple[ImageDigest, ...]
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    created: str = "1970-01-01T00:00:00Z"
    history: tuple[str, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "image config") -> Self:
        fields = _Fields(_json(data, where), where)
        rootfs = _Fields(fields.required("rootfs", dict), f"{where}: rootfs")
        run = _Fields(fields.optional("config", dict) or {}, f"{where}: config")
        history = fields.optional("history", list) or []
        return cls(
            platform=_platform(fields.document, where),
            diff_ids=tuple(rootfs.digests("diff_ids")),
            labels=run.strings("Labels"),
            env=run.texts("Env"),
            entrypoint=run.texts("Entrypoint"),
            cmd=run.texts("Cmd"),
            exposed_ports=tuple(sorted(run.optional("ExposedPorts", dict) or {})),
            user=run.optional("User", str) or "",
            working_dir=run.optional("WorkingDir", str) or "",
            created=fields.optional("created", str) or "",
            history=tuple(str(step.get("created_by", "")) for step in history if isinstance(step, dict)),
        )

    def to_bytes(self) -> bytes:
        run = {
            "Labels": dict(self.labels),
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "User": self.user,
            "WorkingDir": self.working_dir,
        }
        return canonical_json(
            {
                **_platform_dict(self.platform),
                "created": self.created,
                "config": {name: value for name, value in run.items() if value},
                "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in self.diff_ids]},
                "history": [{"created": self.created, "created_by": step} for step in self.history],
            }
        )


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One platform's image whose every blob is in a content store; `descriptor` is its manifest's."""

    descriptor: Descriptor
    manifest: ImageManifest
    config: ImageConfig


def select_platform(index: ImageIndex, platform: Platform) -> Descriptor:
    """The manifest to run on `platform`: an exact variant first, else the first that it runs.

    Raises:
        PlatformNotFoundError: there is none; the message lists what the index has.
    """
    fitting = [each for each in index.manifests if each.platform is not None and platform.runs(each.platform)]
    exact = [each for each in fitting if each.platform == platform]
    if not fitting:
        found = ", ".join(str(each) for each in index.platforms) or "no platform at all"
        raise PlatformNotFoundError(f"image is not built for {platform}: the index has {found}")
    return (exact or fitting)[0]


def read_config(data: bytes, manifest: ImageManifest, platform: Platform) -> ImageConfig:
    """The config of a manifest, checked against it.

    Raises:
        ImageFormatError: broken, or its diff_ids are not one for each layer.
        PlatformNotFoundError: the image was made for another platform.
    """
    where = f"image config {manifest.config.digest}"
    config = ImageConfig.from_bytes(data, where)
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageFormatError(
            f"{where} must have a diff_id for each of {len(manifest.layers)} layers, not {len(config.diff_ids)}",
            where=where,
        )
    if not platform.runs(config.platform):
        raise PlatformNotFoundError(f"image is not built for {platform}: {where} says {config.platform}")
    return config


def document_type(data: bytes, where: str) -> str:
    """Media type of an index or manifest: its own `mediaType`, else told by its fields (OCI makes it optional)."""
    fields = _Fields(_json(data, where), where)
    declared: str | None = fields.optional("mediaType", str)
    if declared is not None:
        return declared
    return OCI_INDEX if "manifests" in fields.document else OCI_MANIFEST


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Bytes that depend on the values alone."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _json(data: bytes, where: str) -> object:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ImageFormatError(
            f"{where} must be at most {MAX_DOCUMENT_BYTES} bytes, it has {len(data)}", where=where
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageFormatError(f"{where} is not JSON: {error}", where=where) from error


def _document(data: bytes, where: str, media_types: frozenset[str], *, foreign: tuple[str, ...]) -> _Fields:
    fields = _Fields(_json(data, where), where)
    version = fields.document.get("schemaVersion")
    if version != 2:
        raise ImageFormatError(f"{where}: schemaVersion must be 2, not {version!r}", where=where)
    media_type = fields.optional("mediaType", str)
    if media_type is not None and media_type not in media_types:
        expected = " or ".join(sorted(media_types))
        raise ImageFormatError(f"{where}: mediaType must be {expected}, not {media_type!r}", where=where)
    for name in foreign:
        if name in fields.document:
            raise ImageFormatError(
                f"{where} must not have a field {name!r}: it could be read as two kinds", where=where
            )
    return fields


def _platform(document: Mapping[str, Any], where: str) -> Platform:
    fields = _Fields(document, where)
    return Platform(
        fields.required("os", str),
        fields.required("architecture", str),
        fields.optional("variant", str) or None,
    )


def _platform_dict(platform: Platform) -> dict[str, str]:
    document = {"os": platform.os, "architecture": platform.architecture}
    return {**document, "variant": platform.variant} if platform.variant else document


class _Fields:
    """Typed reading of one JSON object; `null` counts as absent, as Go writes it for empty lists."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise ImageFormatError(f"{where} must be an object, not {type(document).__name__}", where=where)
        self.document: dict[str, Any] = document
        self.where = where

    def optional(self, name: str, kind: type) -> Any:
        value = self.document.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self._wrong(name, kind.__name__, value)
        return value

    def required(self, name: str, kind: type) -> Any:
        value = self.optional(name, kind)
        if value is None:
            raise ImageFormatError(f"{self.where} lacks the field {name!r}", where=self.where)
        return value

    def size(self, name: str) -> int:
        value: int = self.required(name, int)
        if value < 0:
            raise self._wrong(name, "a size of 0 or more bytes", value)
        return value

    def digest(self, name: str) -> ImageDigest:
        return self._digest(name, self.required(name, str))

    def digests(self, name: str) -> list[ImageDigest]:
        return [self._digest(f"{name}[{n}]", text) for n, text in enumerate(self.required(name, list))]

    def strings(self, name: str) -> dict[str, str]:
        values = self.optional(name, dict) or {}
        for key, value in values.items():
            if not isinstance(value, str):
                raise self._wrong(f"{name}.{key}", "str", value)
        return values

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.optional(name, list) or []
        for n, value in enumerate(values):
            if not isinstance(value, str):
                raise self._wrong(f"{name}[{n}]", "str", value)
        return tuple(values)

    def _digest(self, name: str, text: object) -> ImageDigest:
        try:
            return ImageDigest.parse(text if isinstance(text, str) else repr(text))
        except (EdgewrightError, ValueError) as error:
            raise ImageFormatError(f"{self.where}: {name}: {error}", where=self.where) from error

    def _wrong(self, name: str, expected: str, found: object) -> ImageFormatError:
        return ImageFormatError(
            f"{self.where}: {name} must be {expected}, not {found!r:.100}", where=self.where
        )
