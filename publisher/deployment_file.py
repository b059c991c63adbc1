"""An Azure ML v2 deployment file (`az ml online-deployment create -f`), read as what an image is built from.

Rules (schema: managedOnlineDeployment and kubernetesOnlineDeployment, in the `azureml` CLI extension 2):
- Paths are relative to the file. Taken: `model`, `code_configuration`, `environment`, `environment_variables`, and the
  names and tags.
- What only a cloud endpoint has (instance type and count, probes, scaling, …) is left out, with one note that names it.
- Anything else is refused with its path and line; so is a reference to a remote asset (`azureml://`, `https://`), which is
  not asked for over a network here.

    deployment = read_deployment(Path("deployment.yml"))
    deployment.model            # FileModel(path, name) or a registered model's id
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_containers.module_view import is_own_variable
from publisher.conda_file import CondaEnvironment, parse_conda, read_conda
from publisher.errors import DocumentError
from publisher.yaml_document import YamlDocument, read_yaml

LEFT_OUT = frozenset(
    {
        "app_insights_enabled",
        "data_collector",
        "egress_public_network_access",
        "endpoint_name",
        "instance_count",
        "instance_type",
        "liveness_probe",
        "private_network_connection",
        "readiness_probe",
        "request_settings",
        "resources",
        "scale_settings",
        "startup_probe",
        "type",
    }
)
"""Keys about the cloud endpoint, not about the image."""

CLOUD_BASES = "mcr.microsoft.com/azureml/"
"""Azure ML's own bases hold conda and no Python that wheels could be installed for."""

TAKEN = frozenset(
    {
        "$schema",
        "code_configuration",
        "description",
        "environment",
        "environment_variables",
        "model",
        "name",
        "properties",
        "tags",
    }
)
_MODEL_KEYS = frozenset(
    {"$schema", "name", "version", "path", "type", "description", "tags", "properties", "flavors"}
)
_CODE_KEYS = frozenset({"code", "scoring_script"})
_ENVIRONMENT_KEYS = frozenset(
    {
        "$schema",
        "name",
        "version",
        "conda_file",
        "image",
        "description",
        "tags",
        "properties",
        "inference_config",
        "os_type",
    }
)
_REGISTERED = re.compile(r"azureml:(?!//)(?P<name>[^:@/]+)(?::(?P<version>\d+)|@latest)?")


@dataclass(frozen=True, slots=True)
class FileModel:
    """A model that is a file or folder beside the deployment file; `name` is empty where none is given."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class DeploymentFile:
    """What a deployment file says about the image.

    Attributes:
        model: a file, or `NAME` or `NAME:VERSION` of a registered model.
        script: the entry script; None where the model needs none.
        code: folder whose files go beside the script; None where the file names none.
        conda: the environment.
        base: image to stand on, as a registry reference.
        variables: environment variables of the image.
        notes: what was left out.
    """

    model: FileModel | str
    script: Path | None
    code: Path | None
    conda: CondaEnvironment | None
    base: str | None
    variables: Mapping[str, str]
    tags: Mapping[str, str]
    properties: Mapping[str, str]
    description: str | None
    notes: tuple[str, ...]


def read_deployment(path: Path) -> DeploymentFile:
    """Read a deployment file.

    Raises:
        DocumentError: not YAML, an unknown key, a missing file or a remote asset; names file, line and key.
        RequirementError: a conda environment that cannot be taken.
    """
    return _Reader(path).read()


class _Reader:
    """One file while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.parent
        self._document: YamlDocument = read_yaml(path)

    def read(self) -> DeploymentFile:
        top = self._mapping(())
        self._known((), TAKEN | LEFT_OUT)
        if "model" not in top:
            raise self._error("has no model: expected a path or azureml:NAME:VERSION")
        script, code = self._code()
        conda, base = self._environment()
        notes = []
        if left_out := sorted(LEFT_OUT & top.keys()):
            notes.append(f"not part of an image, left out: {', '.join(left_out)}")
        if base is not None and base.startswith(CLOUD_BASES):
            notes.append(f"environment.image {base} is made for conda, left out; --base names another")
            base = None
        return DeploymentFile(
            model=self._model(),
            script=script,
            code=code,
            conda=conda,
            base=base,
            variables=self._variables(),
            tags=self._texts("tags"),
            properties=self._texts("properties"),
            description=self._text(("description",)),
            notes=tuple(f"{self._path.name}: {each}" for each in notes),
        )

    def _model(self) -> FileModel | str:
        keys: tuple[str, ...] = ("model",)
        value = self._value(keys)
        if isinstance(value, dict):
            self._known(keys, _MODEL_KEYS)
            name = self._text((*keys, "name")) or ""
            if "path" in value:
                return FileModel(self._file((*keys, "path")), name)
            if not name:
                raise self._error("must have a path, or the name of a registered model", *keys)
            version = value.get("version")
            return name if version is None else f"{name}:{version}"
        text = self._text(keys)
        registered = _REGISTERED.fullmatch(text or "")
        if registered is None:
            return FileModel(self._file(keys), "")
        version = registered["version"]
        return registered["name"] if version is None else f"{registered['name']}:{version}"

    def _code(self) -> tuple[Path | None, Path | None]:
        keys = ("code_configuration",)
        if self._value(keys) is None:
            return None, None
        self._known(keys, _CODE_KEYS)
        code = self._file((*keys, "code")) if self._value((*keys, "code")) is not None else self._folder
        if not code.is_dir():
            raise self._error(f"must name a folder in code, not {code}", *keys, "code")
        script_keys = (*keys, "scoring_script")
        script = self._file(script_keys, code)
        if script.parent.resolve() != code.resolve():
            raise self._error(
                f"names {self._text(script_keys)!r} in {'.'.join(script_keys)}, which must be directly in the folder of code",
                *script_keys,
            )
        return script, (code if self._value((*keys, "code")) is not None else None)

    def _environment(self) -> tuple[CondaEnvironment | None, str | None]:
        keys = ("environment",)
        value = self._value(keys)
        if value is None:
            return None, None
        if isinstance(value, str):
            if value.startswith("azureml:"):
                raise self._error(
                    f"names the registered environment {value!r}, which is in the cloud: write it out with conda_file, or "
                    "build it from its Dockerfile",
                    *keys,
                )
            raise self._error("must have conda_file and image, not a text", *keys)
        self._known(keys, _ENVIRONMENT_KEYS)
        conda_keys = (*keys, "conda_file")
        inline = self._value(conda_keys)
        conda = None
        if isinstance(inline, dict):
            conda = parse_conda(self._document, conda_keys, self._path)
        elif inline is not None:
            conda = read_conda(self._file(conda_keys))
        return conda, self._text((*keys, "image"))

    def _variables(self) -> dict[str, str]:
        found = self._texts("environment_variables")
        for name in found:
            if not is_own_variable(name):
                raise self._error(
                    f"has {name!r} in environment_variables, which an image cannot set",
                    "environment_variables",
                    name,
                )
        return found

    def _file(self, keys: tuple[str, ...], folder: Path | None = None) -> Path:
        """An existing file or folder named at `keys`."""
        text = self._text(keys)
        field = ".".join(keys)
        if not text:
            raise self._error(f"must name a file in {field}", *keys)
        if re.match(r"[a-z][a-z0-9+]*:", text, re.IGNORECASE):
            raise self._error(
                f"names a remote asset in {field}: {text.split('?')[0]!r}; download it and give its path",
                *keys,
            )
        found = (folder or self._folder) / text
        if "\0" in text or not found.exists():
            raise self._error(f"names {text!r} in {field}, which does not exist", *keys)
        return found

    def _texts(self, key: str) -> dict[str, str]:
        if self._value((key,)) is None:
            return {}
        return {name: self._text((key, name)) or "" for name in self._mapping((key,))}

    def _text(self, keys: tuple[str, ...]) -> str | None:
        value = self._value(keys)
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int | None):
            raise self._error(f"must be a text in {'.'.join(keys)}", *keys)
        return None if value is None else str(value)

    def _known(self, keys: tuple[str, ...], known: frozenset[str]) -> None:
        unknown = [key for key in self._mapping(keys) if key not in known]
        if unknown:
            path = ".".join((*keys, unknown[0]))
            names = ", ".join(sorted(known))
            raise self._error(f"has the unknown key {path!r}; known are {names}", *keys, unknown[0])

    def _mapping(self, keys: tuple[str, ...]) -> dict[str, Any]:
        value = self._value(keys)
        if not isinstance(value, dict):
            raise self._error(f"must be a mapping{' in ' + '.'.join(keys) if keys else ''}", *keys)
        return value

    def _value(self, keys: tuple[str, ...]) -> Any:
        value = self._document.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _error(self, what: str, *keys: str) -> DocumentError:
        where = self._document.where(*keys)
        return DocumentError(f"{where} {what}", where=where)
