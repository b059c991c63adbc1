"""The agent's configuration: `config.toml`, each field also an environment variable `EDGE_AGENT_<SECTION>_<FIELD>`.

Rules: unknown keys are errors that name the key; every field has its type and range in one table; relative paths are
relative to the configuration file; the connection string is read from its file (mode 0600) and never from here.

| field                     | default           | what                                                              |
| ------------------------- | ----------------- | ----------------------------------------------------------------- |
| hub.connection_string_file | connection-string | file with the device's connection string                         |
| hub.https_port            | 443               | the hub's HTTPS port (8443 on an embedded hub)                    |
| hub.ca_file               | (system's)        | PEM file of the authority that signed the hub's certificate      |
| agent.state_dir           | state             | everything the agent keeps                                        |
| agent.reconcile_interval_s | 5                | how often it looks when nothing calls it                          |
| agent.ready_timeout_s     | 60                | how long a new module may take until its /ready answers 200       |
| process.python            | /usr/bin/python3  | interpreter of images without a base                              |
| process.allow_unisolated  | false             | run modules without a sandbox where the kernel offers none        |
| process.first_port        | 20000             | first of the ports for modules whose createOptions name none      |
| process.last_port         | 29999             | last of them                                                      |
| edge_hub.host             | 127.0.0.2         | address of the device's local MQTT server                         |
| edge_hub.port             | 8883              | its port; stock SDKs take no other                                |
| edge_hub.store_max_bytes  | 52428800          | disk for messages that wait for the hub                           |
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import AgentError, ContractError
from edge_contracts.sas import ConnectionString

DEFAULT_PATH = Path("/etc/edge-agent/config.toml")
PATH_VARIABLE = "EDGE_AGENT_CONFIG"
PREFIX = "EDGE_AGENT_"


class ConfigError(AgentError):
    """The configuration cannot be used as it is; the message names the file and the key."""

    code = "config"


@dataclass(frozen=True, slots=True)
class Field:
    """One configuration field: its type, its default and the least and greatest value of a number."""

    kind: type
    default: Any
    least: float = 0
    most: float = float("inf")


FIELDS: dict[str, dict[str, Field]] = {
    "hub": {
        "connection_string_file": Field(Path, "connection-string"),
        "https_port": Field(int, 443, 1, 65535),
        "ca_file": Field(Path, None),
    },
    "agent": {
        "state_dir": Field(Path, "state"),
        "reconcile_interval_s": Field(float, 5, 0.1, 300),
        "ready_timeout_s": Field(float, 60, 0.5, 3600),
    },
    "process": {
        "python": Field(Path, "/usr/bin/python3"),
        "allow_unisolated": Field(bool, False),
        "first_port": Field(int, 20000, 1, 65535),
        "last_port": Field(int, 29999, 1, 65535),
    },
    "edge_hub": {
        "host": Field(str, "127.0.0.2"),
        "port": Field(int, 8883, 1, 65535),
        "store_max_bytes": Field(int, 52428800, 65536),
    },
}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The whole configuration, checked; field names are `<section>_<field>` without doubled words."""

    path: Path
    connection_string_file: Path
    https_port: int
    ca_file: Path | None
    state_dir: Path
    reconcile_interval_s: float
    ready_timeout_s: float
    python: Path
    allow_unisolated: bool
    first_port: int
    last_port: int
    edge_hub_host: str
    edge_hub_port: int
    store_max_bytes: int

    def connection_string(self) -> ConnectionString:
        """Read the device's connection string.

        Raises:
            ConfigError: the file is missing, open to others, or holds something else.
        """
        path = self.connection_string_file
        try:
            text, mode = path.read_text().strip(), path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"cannot read the connection string in {path}: {error.strerror} (hub.connection_string_file)",
                where=str(path),
                next_command="edgewright device connection-string NAME --show",
            ) from error
        if mode & 0o077:
            raise ConfigError(
                f"{path} holds a key and must be readable by its owner alone: mode 600, not {mode & 0o777:o}",
                where=str(path),
                next_command=f"chmod 600 {path}",
            )
        return _device_connection_string(path, text)


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> AgentConfig:
    """Read the configuration.

    Args:
        path: the file; else `$EDGE_AGENT_CONFIG`, else `/etc/edge-agent/config.toml`.
        environ: the environment, whose variables win over the file.

    Raises:
        ConfigError: the file is missing, or a key or value is not as the table above says.
    """
    variables = os.environ if environ is None else environ
    file = path or Path(variables.get(PATH_VARIABLE) or DEFAULT_PATH)
    values = {
        section: {name: spec.default for name, spec in fields.items()} for section, fields in FIELDS.items()
    }
    _apply_file(values, _read(file), file)
    _apply_environment(values, variables)
    first, last = values["process"]["first_port"], values["process"]["last_port"]
    if first > last:
        raise _wrong(file, "process.last_port", f"at least process.first_port ({first})", last)
    base = file.absolute().parent
    return AgentConfig(
        path=file,
        connection_string_file=base / values["hub"]["connection_string_file"],
        https_port=values["hub"]["https_port"],
        ca_file=_under(base, values["hub"]["ca_file"]),
        state_dir=base / values["agent"]["state_dir"],
        reconcile_interval_s=float(values["agent"]["reconcile_interval_s"]),
        ready_timeout_s=float(values["agent"]["ready_timeout_s"]),
        python=base / values["process"]["python"],
        allow_unisolated=values["process"]["allow_unisolated"],
        first_port=first,
        last_port=last,
        edge_hub_host=values["edge_hub"]["host"],
        edge_hub_port=values["edge_hub"]["port"],
        store_max_bytes=values["edge_hub"]["store_max_bytes"],
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            where=str(path),
            next_command="edge-agent run --config FILE",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}", where=str(path)) from error


def _apply_file(values: dict[str, dict[str, Any]], document: Mapping[str, Any], path: Path) -> None:
    for section, entries in document.items():
        if section not in FIELDS:
            raise ConfigError(_unknown(path, section, FIELDS), where=section)
        if not isinstance(entries, dict):
            raise _wrong(path, section, "a table", entries)
        for name, value in entries.items():
            if name not in FIELDS[section]:
                raise ConfigError(
                    _unknown(path, f"{section}.{name}", FIELDS[section]), where=f"{section}.{name}"
                )
            values[section][name] = _value(FIELDS[section][name], value, f"{section}.{name}", path)


def _unknown(path: Path, key: str, known: Mapping[str, object]) -> str:
    return f"unknown key '{key}' in {path}; expected one of {', '.join(sorted(known))}"


def _apply_environment(values: dict[str, dict[str, Any]], variables: Mapping[str, str]) -> None:
    known = {
        f"{PREFIX}{section}_{name}".upper(): (section, name) for section in FIELDS for name in FIELDS[section]
    }
    for variable in sorted(variables):
        if not variable.startswith(PREFIX) or variable == PATH_VARIABLE:
            continue
        if variable not in known:
            raise ConfigError(
                f"unknown environment variable {variable}; expected {PREFIX}<SECTION>_<FIELD>, "
                f"such as {next(iter(known))}",
                where=variable,
            )
        section, name = known[variable]
        field = FIELDS[section][name]
        values[section][name] = _value(field, _parsed(field, variables[variable], variable), variable, None)


def _parsed(field: Field, text: str, variable: str) -> Any:
    if field.kind is bool:
        if text.lower() not in ("true", "false"):
            raise _wrong(None, variable, "true or false", text)
        return text.lower() == "true"
    if field.kind in (int, float):
        try:
            return field.kind(text)
        except ValueError as error:
            raise _wrong(None, variable, "a number", text) from error
    return text


def _value(field: Field, value: Any, key: str, path: Path | None) -> Any:
    """`value` in the field's type: a path is a string, a number within bounds, and true is no number."""
    kinds: Any = {Path: str, float: (int, float)}.get(field.kind, field.kind)
    if not isinstance(value, kinds) or (isinstance(value, bool) and field.kind is not bool):
        raise _wrong(path, key, _KIND_NAMES[field.kind], value)
    if field.kind in (int, float) and not field.least <= value <= field.most:
        raise _wrong(path, key, f"between {field.least:g} and {field.most:g}", value)
    if kinds is str and not value:
        raise _wrong(path, key, "not empty", value)
    return value


_KIND_NAMES = {
    Path: "a path in quotes",
    str: "a string",
    int: "a whole number",
    float: "a number of seconds",
    bool: "true or false",
}


def _wrong(path: Path | None, key: str, expected: str, found: object) -> ConfigError:
    place = f" in {path}" if path else ""
    return ConfigError(f"'{key}'{place} must be {expected}, not {found!r}", where=key)


def _under(base: Path, value: str | None) -> Path | None:
    return None if value is None else base / value


def _device_connection_string(path: Path, text: str) -> ConnectionString:
    try:
        parsed = ConnectionString.parse(text, where=str(path))
    except ContractError as error:
        raise ConfigError(error.message, where=str(path)) from error
    if not parsed.device_id or not parsed.shared_access_key or parsed.module_id:
        raise ConfigError(
            f"{path} must hold a device's connection string: HostName=…;DeviceId=…;SharedAccessKey=…",
            where=str(path),
            next_command="edgewright device connection-string NAME --show",
        )
    return parsed
