"""One module of a deployment manifest.

Rules (IoT Edge `edgeAgent` deployment schema 1.1; defaults: `Constants.cs`):
- Names: letters, digits, `_` and `-`; `edgeAgent` and `edgeHub` are the system modules.
- `type` is `docker`; `status`, `restartPolicy` and `settings.image` are required.
- `imagePullPolicy` on-create, `startupOrder` 4294967295 (last) and `version` empty where absent.
- Names of environment variables have no `+`, `#`, `$`, `.` and white space; values become strings.
- createOptions is JSON text in pieces (`create_options.py`); here it is the parsed object.

>>> module = ModuleSettings("scorer", ImageRef.parse("registry.example/digits:1"), env={"LEVEL": "info"})
>>> module.dump()["settings"]
{'image': 'registry.example/digits:1', 'createOptions': '{}'}
>>> ModuleSettings.parse("scorer", module.dump(), where="modules.scorer") == module
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from edge_contracts.create_options import CreateOptions, join_create_options, split_create_options
from edge_contracts.documents import canonical_json, member
from edge_contracts.errors import ContractError, shown, unexpected
from edge_contracts.image_ref import ImageRef

CODE = "manifest"
STARTUP_ORDER_MAXIMUM = 4294967295
SYSTEM_MODULES = ("edgeAgent", "edgeHub")
_MODULE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ENV_NAME = re.compile(r"[^+#$\s.]+")


class DesiredStatus(StrEnum):
    """What the author wants of a module."""

    RUNNING = "running"
    STOPPED = "stopped"


class RestartPolicy(StrEnum):
    """When a module that stopped is started again; IoT Edge treats on-unhealthy as on-failure."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ON_UNHEALTHY = "on-unhealthy"
    ALWAYS = "always"


class ImagePullPolicy(StrEnum):
    """Whether a missing image is pulled."""

    ON_CREATE = "on-create"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """A module as the manifest asks for it; `desired` is its own twin's desired properties, None leaves the twin alone."""

    name: str
    image: ImageRef
    version: str = ""
    status: DesiredStatus = DesiredStatus.RUNNING
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    startup_order: int = STARTUP_ORDER_MAXIMUM
    image_pull_policy: ImagePullPolicy = ImagePullPolicy.ON_CREATE
    env: dict[str, str] = field(default_factory=dict)
    create_options: dict[str, Any] = field(default_factory=dict)
    desired: dict[str, Any] | None = None

    @classmethod
    def parse(
        cls,
        name: str,
        document: Any,
        *,
        where: str,
        desired: dict[str, Any] | None = None,
        system: bool = False,
    ) -> ModuleSettings:
        """Read the member `modules.{name}`, or a system module, whose status and restart policy may be absent.

        Raises:
            ContractError: codes `manifest`, `create-options`, `image-reference`, `image-digest`; `where` is the path.
        """
        check_module_name(name, where, system=system)
        if not isinstance(document, Mapping):
            raise unexpected(where, "a JSON object", document, code=CODE)
        kind = member(document, "type", where, str, "'docker'", code=CODE)
        if kind != "docker":
            raise unexpected(f"{where}.type", "'docker'", kind, code=CODE)
        settings = member(document, "settings", where, dict, "a JSON object with 'image'", code=CODE)
        return cls(
            name=name,
            image=_parse_image(settings, f"{where}.settings"),
            version=member(document, "version", where, str, "text", default="", code=CODE),
            status=_choice(
                document, "status", where, DesiredStatus, DesiredStatus.RUNNING if system else None
            ),
            restart_policy=_choice(
                document, "restartPolicy", where, RestartPolicy, RestartPolicy.ALWAYS if system else None
            ),
            startup_order=_parse_startup_order(
                document, where, 0 if name == "edgeAgent" else STARTUP_ORDER_MAXIMUM
            ),
            image_pull_policy=_choice(
                document, "imagePullPolicy", where, ImagePullPolicy, ImagePullPolicy.ON_CREATE
            ),
            env=_parse_env(document, where),
            create_options=_parse_create_options(settings, f"{where}.settings"),
            desired=desired,
        )

    def dump(self) -> dict[str, Any]:
        """The member `modules.{name}`, without its module twin."""
        document: dict[str, Any] = {"version": self.version} if self.version else {}
        document |= {
            "type": "docker",
            "status": self.status.value,
            "restartPolicy": self.restart_policy.value,
            "imagePullPolicy": self.image_pull_policy.value,
        }
        if self.startup_order != STARTUP_ORDER_MAXIMUM:
            document["startupOrder"] = self.startup_order
        if self.env:
            document["env"] = {name: {"value": value} for name, value in sorted(self.env.items())}
        document["settings"] = {
            "image": str(self.image),
            **split_create_options(canonical_json(self.create_options)),
        }
        return document


def check_module_name(name: str, where: str, *, system: bool = False) -> None:
    """Refuse a name that IoT Edge refuses.

    Raises:
        ContractError: code `manifest`.
    """
    if not _MODULE_NAME.fullmatch(name):
        raise ContractError(
            f"Module name must be letters, digits, '_' and '-', not {shown(name)}, in '{where}'",
            code=CODE,
            where=where,
        )
    if name in SYSTEM_MODULES and not system:
        raise ContractError(
            f"Module name must not be that of a system module, found {shown(name)} in '{where}'",
            code=CODE,
            where=where,
        )


Choice = TypeVar("Choice", bound=StrEnum)


def _choice(
    document: Mapping[str, Any], key: str, where: str, choices: type[Choice], default: Choice | None
) -> Choice:
    expected = f"one of {', '.join(choices)}"
    value = member(
        document, key, where, str, expected, default=None if default is None else default.value, code=CODE
    )
    try:
        return choices(value)
    except ValueError as error:
        raise unexpected(f"{where}.{key}", expected, value, code=CODE) from error


def _parse_image(settings: Mapping[str, Any], where: str) -> ImageRef:
    text = member(settings, "image", where, str, "an image reference", code=CODE)
    try:
        return ImageRef.parse(text)
    except ContractError as error:
        path = f"{where}.image"
        raise ContractError(f"{error.message}, in '{path}'", code=error.code, where=path) from error


def _parse_startup_order(document: Mapping[str, Any], where: str, default: int) -> int:
    expected = f"an integer from 0 to {STARTUP_ORDER_MAXIMUM}"
    order = member(document, "startupOrder", where, int, expected, default=default, code=CODE)
    if not 0 <= order <= STARTUP_ORDER_MAXIMUM:
        raise unexpected(f"{where}.startupOrder", expected, order, code=CODE)
    return order


def _parse_env(document: Mapping[str, Any], where: str) -> dict[str, str]:
    path = f"{where}.env"
    entries = member(document, "env", where, dict, "a JSON object of variables", default={}, code=CODE)
    return {name: _parse_variable(name, entry, f"{path}.{name}") for name, entry in entries.items()}


def _parse_variable(name: str, entry: Any, path: str) -> str:
    if not _ENV_NAME.fullmatch(name):
        raise unexpected(path, "named without '+', '#', '$', '.' and white space", name, code=CODE)
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise unexpected(path, "a JSON object with 'value'", entry, code=CODE)
    value = entry["value"]
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else canonical_json(value)
    raise unexpected(f"{path}.value", "a string, a number or a boolean", value, code=CODE)


def _parse_create_options(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    text = join_create_options(settings, where=where)
    return dict(CreateOptions.from_text(text, where=f"{where}.createOptions").document)
