"""Members that a deployment manifest may have, by place: what Azure's own command line holds a manifest against.

Rules (deployment schemas `$edgeAgent` 1.0 and 1.1, `$edgeHub` 1.0 and 1.1, all `additionalProperties: false`; readers:
`EdgeAgentConnection.cs`, `EdgeHubConfigParser.cs`):
- A member that is not listed is a slip of the pen: no reader looks at it.
- `EXTENSIONS` are read by the devices' runtime, and yet refused by `az iot edge` without `--no-validation`.
- Reading keeps all of them (`DeploymentManifest.dump`); this module only names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_contracts.create_options import is_create_options_name

ANY = "*"
"""A place whose members have names of the author's choice."""

_MODULE_1_0 = frozenset({"version", "type", "status", "restartPolicy", "env", "settings"})
_MODULE = _MODULE_1_0 | {"imagePullPolicy", "startupOrder"}
_EDGE_AGENT = frozenset({"type", "settings", "env", "imagePullPolicy"})
_SETTINGS = frozenset({"image"})

AGENT_MEMBERS: Mapping[str, frozenset[str]] = {
    "": frozenset({"schemaVersion", "runtime", "systemModules", "modules"}),
    "runtime": frozenset({"type", "settings"}),
    "runtime.settings": frozenset({"minDockerVersion", "loggingOptions", "registryCredentials"}),
    "runtime.settings.registryCredentials.*": frozenset({"username", "password", "address"}),
    "systemModules": frozenset({"edgeAgent", "edgeHub"}),
    "systemModules.edgeAgent": _EDGE_AGENT,
    "systemModules.edgeHub": _MODULE - {"version"},
    "systemModules.*.settings": _SETTINGS,
    "systemModules.*.env.*": frozenset({"value"}),
    "modules.*": _MODULE,
    "modules.*.settings": _SETTINGS,
    "modules.*.env.*": frozenset({"value"}),
}
HUB_MEMBERS: Mapping[str, frozenset[str]] = {
    "": frozenset({"schemaVersion", "routes", "storeAndForwardConfiguration"}),
    "routes.*": frozenset({"route", "priority", "timeToLiveSecs"}),
    "storeAndForwardConfiguration": frozenset({"timeToLiveSecs"}),
}
EXTENSIONS: Mapping[str, frozenset[str]] = {
    "": frozenset({"integrity", "mqttBroker"}),
    "modules.*": frozenset({"configuration"}),
    "systemModules.*": frozenset({"configuration"}),
    "modules.*.settings": frozenset({"digest"}),
    "systemModules.*.settings": frozenset({"digest"}),
    "storeAndForwardConfiguration": frozenset({"storeLimits"}),
}


def unknown_members(
    section: Mapping[str, Any], known: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, bool]]:
    """Paths below `section` of members that are not in `known`, and whether each is one of `EXTENSIONS`."""
    yield from _walk(section, known, "", "")


def _walk(
    value: Mapping[str, Any], known: Mapping[str, frozenset[str]], path: str, pattern: str
) -> Iterator[tuple[str, bool]]:
    allowed = _at(known, pattern)
    for name, below in value.items():
        here = f"{path}.{name}" if path else name
        if allowed is not None and name not in allowed and not _is_piece(pattern, name):
            extensions = _at(EXTENSIONS, pattern) or frozenset()
            yield here, name in extensions
        elif isinstance(below, Mapping):
            yield from _walk(below, known, here, _pattern(known, pattern, name))


def _at(table: Mapping[str, frozenset[str]], pattern: str) -> frozenset[str] | None:
    """The row of a place: its own, or that of a place with one name less written out."""
    if pattern in table:
        return table[pattern]
    parts = pattern.split(".")
    starred = (".".join([*parts[:n], ANY, *parts[n + 1 :]]) for n in range(1, len(parts)))
    return next((table[each] for each in starred if each in table), None)


def _pattern(known: Mapping[str, frozenset[str]], pattern: str, name: str) -> str:
    """The place of a member: under its own name where the place has a row, else under `*`."""
    own = f"{pattern}.{name}" if pattern else name
    named = pattern == "" or _at(known, pattern) is not None
    return own if named else f"{pattern}.{ANY}"


def _is_piece(pattern: str, name: str) -> bool:
    return pattern.endswith(".settings") and pattern != "runtime.settings" and is_create_options_name(name)
