"""Image references and digests.

Rules (IoT Edge's reader, `DockerConfig.cs` and `DockerUtil.cs`; the grammar of names is the distribution project's):
- `[registry/]repository[:tag]` or `[registry/]repository@sha256:…`; never a tag and a digest: IoT Edge refuses both
  together, so `with_digest` drops the tag.
- The first path part is a registry when it holds `.` or `:`, or is `localhost`; `$upstream:443` is the parent of a
  nested device.
- Registry credentials are chosen by host: the first path part when it holds `.` or `:`, else `docker.io` when there is
  any `/`; a name of a single part gets none. Compared without case.

>>> ref = ImageRef.parse("registry.example:5050/digits:1")
>>> ref.registry, ref.repository, ref.tag, ref.is_pinned
('registry.example:5050', 'digits', '1', False)
>>> str(ref.with_digest(ImageDigest.of(b"")))[:44]
'registry.example:5050/digits@sha256:e3b0c442'
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from edge_contracts.errors import ContractError, shown

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_REGISTRY = re.compile(
    r"(?:\$upstream|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::(\d{1,5}))?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REPOSITORY_LIMIT = 255
DEFAULT_REGISTRY = "docker.io"


def _refuse(text: str, expected: str) -> ContractError:
    return ContractError(f"Image reference {shown(text)}: {expected}", code="image-reference", where=text)


@dataclass(frozen=True, slots=True, order=True)
class ImageDigest:
    """The digest of a blob: `sha256:` and 64 lower-case hexadecimal digits (or `sha512:` and 128)."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None or not re.fullmatch(f"[0-9a-f]{{{length}}}", self.hex):
            raise ContractError(
                f"Digest must be sha256: and 64 lower-case hexadecimal digits, not {shown(str(self))}",
                code="image-digest",
                where=str(self),
            )

    @classmethod
    def of(cls, data: bytes) -> ImageDigest:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> ImageDigest:
        """Read `algorithm:hex`.

        Raises:
            ContractError: code `image-digest`.
        """
        algorithm, _, digits = text.partition(":")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image reference; see the rules above."""

    registry: str | None
    repository: str
    tag: str | None = None
    digest: ImageDigest | None = None

    def __post_init__(self) -> None:
        text = str(self)
        if self.tag is not None and self.digest is not None:
            raise _refuse(
                text, "expected a tag or a digest, found both, which IoT Edge refuses: drop the tag"
            )
        if self.registry is not None:
            _check_registry(text, self.registry)
        if len(self.repository) > _REPOSITORY_LIMIT:
            raise _refuse(
                text, f"repository has {len(self.repository)} characters, at most {_REPOSITORY_LIMIT} fit"
            )
        for component in self.repository.split("/"):
            if not _COMPONENT.fullmatch(component):
                raise _refuse(
                    text,
                    f"each part of the repository must be [a-z0-9] joined by . _ or -, not {shown(component)}",
                )
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise _refuse(text, f"tag must be up to 128 of [A-Za-z0-9_.-], not {shown(self.tag)}")

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        """Read a reference strictly.

        Raises:
            ContractError: code `image-reference` (or `image-digest` for the part behind `@`).
        """
        if not text:
            raise _refuse(text, "expected [registry/]repository[:tag | @digest], found an empty string")
        name, at, digest_text = text.partition("@")
        digest = ImageDigest.parse(digest_text) if at else None
        first, slash, rest = name.partition("/")
        registry = first if slash and _is_registry(first) else None
        path = name if registry is None else rest
        repository, colon, tag = path.partition(":")
        return cls(registry, repository, tag if colon else None, digest)

    def __str__(self) -> str:
        prefix = "" if self.registry is None else f"{self.registry}/"
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{prefix}{self.repository}{tag}{digest}"

    def with_digest(self, digest: ImageDigest) -> ImageRef:
        """The same repository, pinned."""
        return replace(self, tag=None, digest=digest)

    @property
    def is_pinned(self) -> bool:
        """Whether the reference names one image for ever."""
        return self.digest is not None

    @property
    def credentials_host(self) -> str | None:
        """Lower-case host whose registry credentials apply; None where IoT Edge sends none."""
        if self.registry is not None and ("." in self.registry or ":" in self.registry):
            return self.registry.lower()
        if self.registry is not None or "/" in self.repository:
            return DEFAULT_REGISTRY
        return None


def _is_registry(first_part: str) -> bool:
    return "." in first_part or ":" in first_part or first_part in ("localhost", "$upstream")


def _check_registry(text: str, registry: str) -> None:
    match = _REGISTRY.fullmatch(registry)
    if match is None or not _is_registry(registry):
        raise _refuse(
            text, f"registry must be a host name or address with an optional port, not {shown(registry)}"
        )
    if match[1] is not None and not 0 < int(match[1]) <= 65535:
        raise _refuse(text, f"registry port must be 1 to 65535, not {match[1]}")
