"""What can go wrong with an image between a registry and a device's disk.

ContainerError
├── ImageFormatError          an index, manifest, config or layer is not what the OCI documents say it is
│   └── UnsafeLayerError      a layer holds something that is never written to disk
├── PlatformNotFoundError     the image is not built for the wanted platform
├── BlobNotFoundError         the content store lacks a blob
├── DigestMismatchError       bytes are not those the digest names
├── DiskFullError             no room left, before or while writing
└── RegistryError             the registry answered something of no use, status in `status`
    ├── RegistryAuthError         401: credentials missing or wrong
    │   └── RegistryForbiddenError    403: known, and not permitted this
    ├── RegistryNotFoundError     404
    ├── RegistryTooLargeError     413: it, or a proxy before it, takes no body of this size
    ├── RegistryFullError         its disk or quota is used up
    └── RegistryUnavailableError  no answer, 408 or 5xx; temporary unless it says otherwise
        └── RegistryBusyError         429: asked too often, `retry_after_s` says for how long
"""

from __future__ import annotations

from edge_contracts.errors import ContainerError

__all__ = [
    "BlobNotFoundError",
    "ContainerError",
    "DigestMismatchError",
    "DiskFullError",
    "ImageFormatError",
    "PlatformNotFoundError",
    "RegistryAuthError",
    "RegistryBusyError",
    "RegistryError",
    "RegistryForbiddenError",
    "RegistryFullError",
    "RegistryNotFoundError",
    "RegistryTooLargeError",
    "RegistryUnavailableError",
    "UnsafeLayerError",
]


class ImageFormatError(ContainerError):
    """A document or layer breaks its format; `where` names the document and the path inside it."""

    code = "image-format"


class UnsafeLayerError(ImageFormatError):
    """A layer entry would reach outside its folder or carries rights of its own; nothing was left on disk."""

    code = "unsafe-layer"


class PlatformNotFoundError(ContainerError):
    """The image has no variant for the wanted platform; the message lists those it has."""

    code = "platform-not-found"


class BlobNotFoundError(ContainerError):
    """The content store has no such blob."""

    code = "blob-not-found"


class DigestMismatchError(ContainerError):
    """Content differs from its digest; the bytes were thrown away."""

    code = "digest-mismatch"

    def __init__(self, *, expected: str, found: str, where: str) -> None:
        super().__init__(
            f"content of {where} does not match its digest: expected {expected}, found {found}", where=where
        )
        self.expected = expected
        self.found = found


class DiskFullError(ContainerError):
    """Too little room on the disk; what was half written is gone."""

    code = "disk-full"

    def __init__(self, *, needed_bytes: int, free_bytes: int, where: str) -> None:
        super().__init__(
            f"not enough disk space in {where}: {needed_bytes} bytes needed, {free_bytes} bytes free",
            where=where,
            next_command=f"df -h {where}",
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class RegistryError(ContainerError):
    """A registry's answer; `registry`, `repository` and `status` say whose and which."""

    code = "registry"

    def __init__(
        self,
        message: str,
        *,
        registry: str,
        repository: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        temporary: bool | None = None,
        next_command: str | None = None,
    ) -> None:
        where = f"{registry}/{repository}" if repository else registry
        super().__init__(message, where=where, temporary=temporary, next_command=next_command)
        self.registry = registry
        self.repository = repository
        self.status = status
        self.retry_after_s = retry_after_s


class RegistryAuthError(RegistryError):
    """The credentials are missing, wrong, or do not reach this repository."""

    code = "registry-auth"


class RegistryForbiddenError(RegistryAuthError):
    """The user is known and not permitted this."""

    code = "registry-forbidden"


class RegistryNotFoundError(RegistryError):
    """The registry has no such repository, manifest or blob."""

    code = "registry-not-found"


class RegistryTooLargeError(RegistryError):
    """A body larger than the registry, or a proxy before it, takes."""

    code = "registry-too-large"


class RegistryFullError(RegistryError):
    """The registry's disk or quota is used up: nothing is gained by trying again before someone makes room."""

    code = "registry-full"


class RegistryUnavailableError(RegistryError):
    """No usable answer this time."""

    code = "registry-unavailable"
    temporary = True


class RegistryBusyError(RegistryUnavailableError):
    """Asked too often for now."""

    code = "registry-busy"
