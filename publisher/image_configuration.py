"""How a container image is to be made, as Azure ML's SDK v1 asks for it; checked before anything is built.

Checks come in the original's order: the script's path, folder, existence and ending; the runtime; that conda_file,
docker_file, each dependency and schema_file exist; the base image. Only then what this version does not take is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_containers.image_model import Platform
from edge_contracts.redact import Secret
from publisher.errors import ScriptError, UsageError
from publisher.records import check_labels

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials

RUNTIMES = ("spark-py", "python")
_SLIM = "python-slim"  # accepted by the original too, and not documented there either

_REFUSED: Mapping[str, str] = {
    "schema_file": "leave it out: decorate run() with inference_schema's types, which /swagger.json shows",
    "enable_gpu": "leave it out and require the GPU build of your packages in requirements_file",
    "cuda_version": "leave it out and require the GPU build of your packages in requirements_file",
}
"""Parameters of the original API that this version refuses, with the way out."""


@dataclass(frozen=True, slots=True)
class ContainerImageConfig:
    """What `ContainerImage.image_configuration` checked; `None` takes the workspace's setting.

    Attributes:
        execution_script, requirements_file, conda_file, dependencies: absolute, so that the current directory may change.
        runtime: `python` or `spark-py`.
        docker_file: steps for a Docker engine to run below the image's own layers.
        base_image, base_credentials: what the image stands on, and the login of its registry.
    """

    execution_script: Path
    runtime: str
    requirements_file: Path | None
    conda_file: Path | None
    dependencies: tuple[Path, ...]
    platforms: tuple[Platform, ...] | None
    base_image: str | None
    base_credentials: BasicCredentials | None
    docker_file: Path | None
    tags: Mapping[str, str]
    properties: Mapping[str, str]
    description: str | None

    @property
    def credentials_of_base(self) -> Callable[[str], BasicCredentials | None] | None:
        """What tells a registry's login; None for whatever Docker has."""
        given = self.base_credentials
        return None if given is None else lambda registry: given


def container_image_configuration(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
    execution_script: str,
    runtime: str,
    conda_file: str | None = None,
    docker_file: str | None = None,
    schema_file: str | None = None,
    dependencies: Sequence[str] | None = None,
    enable_gpu: bool | None = None,
    tags: Mapping[str, str] | None = None,
    properties: Mapping[str, str] | None = None,
    description: str | None = None,
    base_image: str | None = None,
    base_image_registry: object | None = None,
    cuda_version: str | None = None,
    *,
    requirements_file: str | None = None,
    platforms: Sequence[str] | None = None,
) -> ContainerImageConfig:
    """Check and hold how an image is to be made; the last two parameters are this product's own.

    Raises:
        ScriptError: the script or a dependency is missing, elsewhere, or of the wrong kind.
        UsageError: an unknown runtime, a missing file, or an option this version refuses (with the way out).
    """
    script = _script(execution_script)
    known = _runtime(runtime)
    _require_file("conda_file", conda_file)
    _require_file("docker_file", docker_file)
    includes = tuple(_dependency(each) for each in _listed("dependencies", dependencies))
    _schema(schema_file, script)
    _base(base_image, base_image_registry, known)
    _require_file("requirements_file", requirements_file)
    given = {
        "schema_file": schema_file,
        "enable_gpu": enable_gpu,
        "cuda_version": cuda_version,
    }
    for option, advice in _REFUSED.items():
        if given[option]:
            raise UsageError(f"{option} is not supported: {advice}", where=option)
    return ContainerImageConfig(
        execution_script=script,
        runtime=known,
        requirements_file=Path(requirements_file).absolute() if requirements_file else None,
        conda_file=Path(conda_file).absolute() if conda_file else None,
        dependencies=includes,
        platforms=tuple(Platform.parse(each) for each in platforms) if platforms else None,
        base_image=_with_registry(base_image, base_image_registry),
        base_credentials=_credentials(base_image_registry),
        docker_file=Path(docker_file).absolute() if docker_file else None,
        tags=check_labels("tags", tags),
        properties=check_labels("properties", properties),
        description=description,
    )


def _script(given: str) -> Path:
    script = Path(given)
    if script.is_absolute():
        raise ScriptError(
            f"execution_script must be a path relative to the current directory, not {given}", where=given
        )
    if script.parent != Path():
        raise ScriptError(
            f"execution_script must be in the current directory, not in {script.parent}: go there first, then "
            f"give {script.name}",
            where=given,
            next_command=f"cd {script.parent}",
        )
    if not script.is_file():
        raise ScriptError(f"Execution script {given} doesn't exist", where=given)
    if script.suffix != ".py":
        raise ScriptError(f"Invalid driver type: execution_script {given} must end in .py", where=given)
    return script.absolute()


def _runtime(given: str) -> str:
    runtime = given.lower() if isinstance(given, str) else ""
    if runtime == _SLIM:
        return "python"
    if runtime not in RUNTIMES:
        raise UsageError(
            f"Provided runtime not supported. Possible runtimes are: {'|'.join(RUNTIMES)}; found {given!r}"
        )
    return runtime


def _require_file(option: str, given: str | None) -> None:
    if given and not Path(given).is_file():
        raise UsageError(f"{option} {given} doesn't exist", where=option)


def _listed(option: str, given: Sequence[str] | None) -> Sequence[str]:
    if isinstance(given, str):
        raise UsageError(f"{option} must be a list of paths, not the text {given!r}", where=option)
    return given or ()


def _dependency(given: str) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", given):
        # What a URL gives may change, so an image from it could not be built again; and no hash says what was meant.
        raise ScriptError(
            f"dependency {given} is a URL: download it, and give the file or folder", where=given
        )
    path = Path(given)
    if not path.exists():
        raise ScriptError(f"dependency {given} doesn't exist", where=given)
    return path.absolute()


def _schema(given: str | None, script: Path) -> None:
    _require_file("schema_file", given)
    if given and not Path(given).resolve().is_relative_to(script.parent.resolve()):
        raise UsageError(
            f"schema_file {given} must be in the folder of {script.name} or below it", where="schema_file"
        )


def _base(image: str | None, registry: object | None, runtime: str) -> None:
    if image and runtime != "python":
        raise UsageError(f"base_image goes with runtime python only, not {runtime}", where="base_image")
    fields = _registry_fields(registry)
    if any(fields) and not all(fields):
        raise UsageError(
            "base_image_registry must have address, username and password, all or none",
            where="base_image_registry",
        )


def _with_registry(image: str | None, registry: object | None) -> str | None:
    """The base image's reference, with the registry's address where it has none."""
    address = _registry_fields(registry)[0]
    if not image or not address or image.startswith(f"{address}/"):
        return image or None
    return f"{address}/{image}"


def _credentials(registry: object | None) -> BasicCredentials | None:
    address, username, password = _registry_fields(registry)
    if not address:
        return None
    from edge_containers.registry_client import BasicCredentials

    return BasicCredentials(str(username), Secret(str(password)))


def _registry_fields(registry: object | None) -> tuple[object, ...]:
    """Address, user name and password of the original's ContainerRegistry, whatever class they come in."""
    return tuple(getattr(registry, name, None) for name in ("address", "username", "password"))
