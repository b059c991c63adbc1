"""What can go wrong on the publisher's side; every leaf says what, where, expected and found.

PublishError
├── UsageError                    an argument is not acceptable; nothing was looked at yet
├── WorkspaceError                no workspace, a damaged one, or one made by a newer version
│   └── ConfigError                 edgewright.toml
├── NotFoundError                 no registered model or image of that name or version
├── InUseError                    refused because something else needs it
├── BusyError                     another command holds the lock (temporary)
├── ModelFileError                the file or folder to register cannot be taken
│   └── MlflowModelError            an MLflow folder that says something that must not be
├── DocumentError                 a YAML document that cannot be read
├── BaseImageError                the base is not there, or does not fit
├── EngineError                   a Docker engine is not there, or a build in it failed
├── GoldenError                   golden requests that cannot be read, or are answered otherwise
├── ScriptError                   the entry script cannot be what the image starts
└── EnvironmentResolveError       the requirements cannot become layers
    ├── RequirementError            a requirement is not one
    ├── CondaPackageError           a conda environment asks for what is no Python package
    ├── LockedError                 the lock would change, which --locked forbids
    ├── NotCachedError              --locked, and a wheel is not on this machine
    ├── UnknownPackageError         the index has no such package
    ├── NoVersionError              the index has the package, not the version asked for
    ├── NoWheelError                no wheel for a target platform
    ├── ConflictError               the requirements contradict each other
    └── IndexUnreachableError       the package index does not answer (temporary)
"""

from __future__ import annotations

from edge_contracts.errors import PublishError


class UsageError(PublishError):
    """An argument is not acceptable: the caller's mistake, found before any work."""

    code = "usage"


class WorkspaceError(PublishError):
    """There is no workspace here, or it cannot be used."""

    code = "workspace"


class ConfigError(WorkspaceError):
    """`edgewright.toml` (or an environment variable that overrides it) is not as it must be."""

    code = "config"


class NotFoundError(PublishError):
    """Nothing is registered under that name or version."""

    code = "not-found"


class InUseError(PublishError):
    """Refused, because something that exists needs it."""

    code = "in-use"


class BusyError(PublishError):
    """Another command is doing the same thing to the same name."""

    code = "busy"
    temporary = True


class ModelFileError(PublishError):
    """The file or folder cannot be registered as it is."""

    code = "model-file"


class MlflowModelError(ModelFileError):
    """The folder's `MLmodel`, or a file that it names, cannot be taken."""

    code = "mlflow-model"


class ScriptError(PublishError):
    """The entry script, or a file beside it, cannot go into an image."""

    code = "script"


class DocumentError(PublishError):
    """A YAML document that cannot be read, or says something that is not taken."""

    code = "document"


class EngineError(PublishError):
    """The Docker engine cannot be reached, or what it was asked to build failed."""

    code = "engine"


class GoldenError(PublishError):
    """A golden request cannot be read, the image cannot answer it here, or answers otherwise than was given."""

    code = "golden"


class BaseImageError(PublishError):
    """The base cannot be had, or what it holds does not fit what is put on it."""

    code = "base"


class BuildCancelledError(PublishError):
    """Work given up because another part of the same build failed; that part's error is the one to show."""

    code = "cancelled"


class EnvironmentResolveError(PublishError):
    """The environment's requirements cannot be locked or installed."""

    code = "environment"


class RequirementError(EnvironmentResolveError):
    """A line that is not a requirement this version takes."""

    code = "requirement"


class CondaPackageError(EnvironmentResolveError):
    """Packages of a conda environment that the Python package index has not.

    Attributes:
        packages: their names.
    """

    code = "conda-package"

    def __init__(self, message: str, *, packages: tuple[str, ...], where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.packages = packages


class LockedError(EnvironmentResolveError):
    """The lock would change."""

    code = "locked"


class NotCachedError(EnvironmentResolveError):
    """A wheel of the lock is not on this machine."""

    code = "not-cached"


class UnknownPackageError(EnvironmentResolveError):
    """The package index has no package of that name.

    Attributes:
        package: the name as the index was asked for it.
    """

    code = "unknown-package"

    def __init__(self, message: str, *, package: str, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.package = package


class NoVersionError(EnvironmentResolveError):
    """The package exists; no version of it satisfies the requirement."""

    code = "no-version"


class NoWheelError(EnvironmentResolveError):
    """The package has no wheel for a target platform.

    Attributes:
        package: the package without a wheel.
        platform: the target, as `linux/arm64`.
    """

    code = "no-wheel"

    def __init__(
        self,
        message: str,
        *,
        package: str,
        platform: str,
        where: str | None = None,
        next_command: str | None = None,
    ) -> None:
        super().__init__(message, where=where, next_command=next_command)
        self.package = package
        self.platform = platform


class ConflictError(EnvironmentResolveError):
    """No set of versions satisfies all requirements together."""

    code = "conflict"


class IndexUnreachableError(EnvironmentResolveError):
    """The package index cannot be reached or does not answer in time."""

    code = "index-unreachable"
    temporary = True
