"""`edgewright.toml`: the settings of a workspace, strictly read.

Rules:
- A section is a table row of `SECTIONS`; a key is a field of that section's class; the default's type is the type.
- An unknown section or key is an error naming it, the file, the line, and the names that are known.
- Every field is also an environment variable, `EDGEWRIGHT_<SECTION>_<FIELD>`, which wins over the file;
  lists are separated by commas there. (`EDGEWRIGHT_IMAGE_PLATFORMS=linux/amd64`)
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from publisher.errors import ConfigError

CONFIG_NAME = "edgewright.toml"

BASE_LAYERS = ("copy", "mount")

Value = str | int | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """`[workspace]`: how the workspace is called in output and audit."""

    name: str = "workspace"


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """`[image]`: defaults of `edgewright image build`.

    Compression is a gzip level; 0 stores the layer as it is. Dependencies shrink to a third at level 1 and travel
    rarely; a model's weights hardly shrink and travel often.
    """

    default_base: str = "none"
    base_layers: str = "copy"
    platforms: tuple[str, ...] = ("linux/amd64", "linux/arm64")
    dependencies_compression: int = 1
    model_compression: int = 0


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """`[environment]`: where packages come from and for which Python.

    An empty `index` leaves uv its own default (its configuration, then pypi.org). `find_links` holds URLs or
    folders of wheels, the latter relative to the workspace. None of these ever gets into a lock, a label or a log.
    """

    python: str = "3.11"
    index: str = field(default="", repr=False)
    extra_index: tuple[str, ...] = field(default=(), repr=False)
    find_links: tuple[str, ...] = ()
    no_index: bool = False


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """`[registry]`: logins at registries, `HOST USERNAME env:VARIABLE` or `HOST USERNAME file:PATH` each."""

    logins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """`[azure]`: where Azure's resources are, for `edgewright[azure]`.

    An empty `resource_group` has the registry looked for in the whole subscription. `container_registry` is its name;
    `location` is only told; `arm_endpoint` another cloud's Resource Manager, `ca_file` the authority of its certificate.
    """

    subscription_id: str = ""
    resource_group: str = ""
    location: str = ""
    container_registry: str = ""
    arm_endpoint: str = "https://management.azure.com"
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All of `edgewright.toml`."""

    workspace: WorkspaceSettings = field(default_factory=WorkspaceSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    azure: AzureSettings = field(default_factory=AzureSettings)


SECTIONS: Mapping[str, type[Any]] = {
    "workspace": WorkspaceSettings,
    "image": ImageSettings,
    "environment": EnvironmentSettings,
    "registry": RegistrySettings,
    "azure": AzureSettings,
}

TYPE_NAMES: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    tuple: "a list of strings",
}


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read `edgewright.toml` and the variables that override it.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or ill-typed key, or a value that cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", where=str(path)) from error
    return parse_settings(text, path, environ)


def parse_settings(text: str, path: Path, environ: Mapping[str, str]) -> Settings:
    """Like `load_settings`, for text already read; `path` is for messages."""
    source = _Source(text, path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", where=str(path)) from error
    for name, section in document.items():
        if name not in SECTIONS or not isinstance(section, dict):
            raise source.unknown_section(name)
    parsed = {name: _parse_section(name, document.get(name, {}), source, environ) for name in SECTIONS}
    settings = Settings(**parsed)
    _check_values(settings, path)
    return settings


@dataclass(frozen=True, slots=True)
class _Source:
    """The text being read, for messages that name a line."""

    text: str
    path: Path

    def where(self, section: str, key: str | None = None) -> str:
        """`path:line` of a section or of a key in it; the path alone where TOML's other spellings hide it."""
        current = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
            current = header[1].strip("\"' ") if header else current
            named = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line)
            name = named[1] if named else None
            if key is None and (current == section or (current == "" and name == section)):
                return f"{self.path}:{number}"
            if key is not None and (current, key) == (section, name):
                return f"{self.path}:{number}"
        return str(self.path)

    def unknown_section(self, name: str) -> ConfigError:
        where = self.where(name)
        known = ", ".join(f"[{each}]" for each in SECTIONS)
        return ConfigError(f"unknown key {name!r} in {where}; known sections: {known}", where=where)

    def unknown_key(self, section: str, key: str, known: Iterable[str]) -> ConfigError:
        where = self.where(section, key)
        names = ", ".join(sorted(known))
        return ConfigError(f"unknown key {key!r} of [{section}] in {where}; known keys: {names}", where=where)


def _parse_section(
    name: str, section: Mapping[str, object], source: _Source, environ: Mapping[str, str]
) -> Any:
    cls = SECTIONS[name]
    known = {item.name: item.default for item in fields(cls)}
    values: dict[str, Value] = {}
    for key, value in section.items():
        if key not in known:
            raise source.unknown_key(name, key, known)
        values[key] = _typed(value, known[key], f"{name}.{key}", source.where(name, key))
    for key, default in known.items():
        variable = f"EDGEWRIGHT_{name}_{key}".upper()
        if variable in environ:
            values[key] = _from_text(environ[variable], default, variable)
    return cls(**values)


def _typed(value: object, default: object, name: str, where: str) -> Value:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif type(value) is type(default):
        return value  # type: ignore[return-value]
    expected = TYPE_NAMES[type(default)]
    raise ConfigError(f"{name} must be {expected}, not {value!r}, in {where}", where=where)


def _from_text(text: str, default: object, variable: str) -> Value:
    if isinstance(default, tuple):
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if isinstance(default, bool):
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
    elif isinstance(default, int):
        if text.isascii() and text.isdigit():
            return int(text)
    else:
        return text
    expected = TYPE_NAMES[type(default)]
    raise ConfigError(f"environment variable {variable} must be {expected}, not {text!r}", where=variable)


def _check_values(settings: Settings, path: Path) -> None:
    if not re.fullmatch(r"3\.[0-9]{1,2}", settings.environment.python):
        found = settings.environment.python
        raise ConfigError(
            f'environment.python must be a minor version such as "3.11", not {found!r}, in {path}',
            where=str(path),
        )
    if settings.image.base_layers not in BASE_LAYERS:
        found, known = settings.image.base_layers, " or ".join(BASE_LAYERS)
        raise ConfigError(f"image.base_layers must be {known}, not {found!r}, in {path}", where=str(path))
    for key in ("dependencies_compression", "model_compression"):
        level = getattr(settings.image, key)
        if not 0 <= level <= 9:
            raise ConfigError(f"image.{key} must be 0 (stored) to 9, not {level}, in {path}", where=str(path))


def initial_config(name: str, python: str, azure: Mapping[str, str] | None = None) -> str:
    """The file that `edgewright init` writes: the name and the Python, and the rest as comments with its default.

    `azure` are fields of `[azure]` that are known already.
    """
    known = azure or {}
    resources = "\n".join(
        f"{'' if known.get(key) else '# '}{key} = {json.dumps(known.get(key, ''), ensure_ascii=False)}"
        for key in ("subscription_id", "resource_group", "location", "container_registry")
    )
    return f"""\
# Settings of this Edgewright workspace. Each is also an environment variable: EDGEWRIGHT_IMAGE_PLATFORMS, …

[workspace]
name = "{name}"

[image]
# default_base = "none"        # or a base made by `edgewright image base create`, a path, HOST/REPOSITORY:TAG
# base_layers = "copy"         # "mount": a registry's base stays there, and images are pushed to that registry alone
# platforms = ["linux/amd64", "linux/arm64"]
# dependencies_compression = 1   # gzip level; 0 stores the layer as it is
# model_compression = 0

[environment]
python = "{python}"   # of the images; with base "none" the device's Python must be the same minor version
# index = "https://packages.example.com/simple"
# extra_index = []
# find_links = []   # folders (relative to this file) or URLs of wheels
# no_index = false

[registry]
# logins = ["registry.example.com robot env:ROBOT_PASSWORD"]   # or file:PATH; never the password itself

[azure]
{resources}
"""
