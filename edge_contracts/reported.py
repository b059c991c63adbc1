"""Reported properties of `$edgeAgent` and `$edgeHub`, in IoT Edge's shape with an additive section.

Rules (IoT Edge: `AgentState.cs`, `DockerRuntimeModule.cs`, `EdgeHubConnection.cs`):
- `schemaVersion` is always "1.0". A time that is not set is 0001-01-01T00:00:00.
- `runtime.settings` never has `registryCredentials`, and values that look secret are `***` (IoT Edge echoes both).
- createOptions is cut as in a manifest. System modules have no release; `edgeAgent` has no status and no restart count.
- Descriptions are cut (128 bytes for a module, 512 for the deployment), so that the size of what will be reported is
  known before publishing.
- The section `edgewright` holds release, health and runtime; consoles that do not know it ignore it.
- Only the difference to what the hub has is sent: `diff`.

>>> diff({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}})
{'a': {'c': 4}, 'd': None}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from edge_contracts.create_options import split_create_options
from edge_contracts.documents import canonical_json
from edge_contracts.errors import ContractError
from edge_contracts.module_settings import STARTUP_ORDER_MAXIMUM, ModuleSettings
from edge_contracts.redact import redact_document, redact_text
from edge_contracts.release import ErrorClass, ReleaseResult
from edge_contracts.twin import format_time

SCHEMA_VERSION = "1.0"
NEVER = "0001-01-01T00:00:00"
STATUS_DESCRIPTION_BYTES = 128
DEPLOYMENT_DESCRIPTION_BYTES = 512
SOURCE_BYTES = 128
VERSION_BYTES = 64


class DeploymentStatusCode(IntEnum):
    """`lastDesiredStatus.code` (IoT Edge: `DeploymentStatusCode.cs`)."""

    SUCCESSFUL = 200
    CONFIG_FORMAT_ERROR = 400
    UNKNOWN = 406
    INVALID_SCHEMA_VERSION = 412
    CONFIG_EMPTY = 417
    FAILED = 500

    @classmethod
    def of_error(cls, error: ContractError) -> DeploymentStatusCode:
        """The code for desired properties that could not be read."""
        return _CODE_OF_ERROR.get(error.code, cls.CONFIG_FORMAT_ERROR)


_CODE_OF_ERROR = {
    "manifest-schema-version": DeploymentStatusCode.INVALID_SCHEMA_VERSION,
    "manifest-empty": DeploymentStatusCode.CONFIG_EMPTY,
}


class RuntimeStatus(StrEnum):
    """`runtimeStatus` of a module."""

    UNKNOWN = "unknown"
    BACKOFF = "backoff"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    STOPPED = "stopped"
    FAILED = "failed"
    DEAD = "dead"


class Health(StrEnum):
    """What the health gate last saw."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """A module as it is; `settings` is what runs, which may be an older release than the desired one. Times are aware."""

    settings: ModuleSettings
    runtime_status: RuntimeStatus = RuntimeStatus.UNKNOWN
    status_description: str = ""
    image_hash: str = ""
    exit_code: int = 0
    restart_count: int = 0
    last_start: datetime | None = None
    last_exit: datetime | None = None
    last_restart: datetime | None = None
    health: Health = Health.UNKNOWN
    error_class: ErrorClass | None = None
    next_attempt: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """The release that a device is at or on its way to; `result` is set once `phase` is terminal."""

    digest: str
    phase: str
    result: ReleaseResult | None = None
    attempt: int = 1
    desired_version: int = 0
    error_class: ErrorClass | None = None
    description: str = ""
    previous_digest: str | None = None
    next_attempt: datetime | None = None


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """The machine and the module runtime; `tier` and `reason` say how modules are isolated and why so."""

    os: str
    architecture: str
    version: str
    kind: str = ""
    tier: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """A client of the edge hub. Times are aware."""

    connected: bool
    last_connected: datetime | None = None
    last_disconnected: datetime | None = None


def edge_agent_reported(
    *,
    desired_version: int,
    code: DeploymentStatusCode,
    description: str = "",
    runtime: RuntimeInfo,
    edge_agent: ModuleReport,
    edge_hub: ModuleReport,
    modules: Mapping[str, ModuleReport],
    release: ReleaseReport | None = None,
    local_release: Mapping[str, Any] | None = None,
    agent_version: str = "",
) -> dict[str, Any]:
    """The whole reported properties of `$edgeAgent`; send `diff` of the last ones and these.

    Args:
        local_release: what was applied on the device itself: digest, source, appliedAt, active.
    """
    return {
        "schemaVersion": SCHEMA_VERSION,
        "version": {"version": agent_version, "build": "", "commit": ""},
        "lastDesiredVersion": desired_version,
        "lastDesiredStatus": _status(code, description),
        "runtime": {
            "type": "docker",
            "settings": {"minDockerVersion": "", "loggingOptions": ""},
            "platform": {
                "os": runtime.os,
                "architecture": runtime.architecture,
                "version": _cut(runtime.version, VERSION_BYTES),
            },
        },
        "systemModules": {"edgeAgent": _edge_agent_module(edge_agent), "edgeHub": _module(edge_hub)},
        "modules": {name: _module(report) for name, report in modules.items()},
        "edgewright": {
            "runtime": {"kind": runtime.kind, "tier": runtime.tier, "reason": _cut(runtime.reason)},
            "modules": {name: _health(report) for name, report in modules.items()},
            **({} if release is None else {"release": _release(release)}),
            **({} if local_release is None else {"localRelease": _local_release(local_release)}),
        },
    }


def edge_hub_reported(
    *,
    desired_version: int,
    code: DeploymentStatusCode,
    description: str = "",
    clients: Mapping[str, ClientReport],
    agent_version: str = "",
) -> dict[str, Any]:
    """The whole reported properties of `$edgeHub`; `clients` by `device` or `device/module`."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "version": {"version": agent_version, "build": "", "commit": ""},
        "lastDesiredVersion": desired_version,
        "lastDesiredStatus": _status(code, description),
        "clients": {_twin_key(name): _client(client) for name, client in clients.items()},
    }


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `new` of `old`; empty when they are equal."""
    patch: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            below = diff(before, value)
            if below:
                patch[key] = below
        elif key not in old or before != value or isinstance(before, bool) != isinstance(value, bool):
            patch[key] = value
    return patch | {key: None for key in old if key not in new}


def _status(code: DeploymentStatusCode, description: str) -> dict[str, Any]:
    return {"code": int(code), "description": _cut(description, DEPLOYMENT_DESCRIPTION_BYTES)}


def _module(report: ModuleReport) -> dict[str, Any]:
    module = report.settings
    order = {} if module.startup_order == STARTUP_ORDER_MAXIMUM else {"startupOrder": module.startup_order}
    return {
        "version": module.version,
        "type": "docker",
        "status": module.status.value,
        "restartPolicy": module.restart_policy.value,
        **order,
        **_common(report),
        "restartCount": report.restart_count,
        "lastRestartTimeUtc": _time(report.last_restart),
    }


def _edge_agent_module(report: ModuleReport) -> dict[str, Any]:
    return {"type": "docker", **_common(report)}


def _common(report: ModuleReport) -> dict[str, Any]:
    module = report.settings
    options = split_create_options(canonical_json(redact_document(module.create_options)))
    return {
        "imagePullPolicy": module.image_pull_policy.value,
        "settings": {"image": str(module.image), "imageHash": report.image_hash, **options},
        "env": {name: {"value": value} for name, value in _redacted_env(module.env).items()},
        "exitCode": report.exit_code,
        "statusDescription": _cut(report.status_description),
        "lastStartTimeUtc": _time(report.last_start),
        "lastExitTimeUtc": _time(report.last_exit),
        "runtimeStatus": report.runtime_status.value,
    }


def _redacted_env(env: Mapping[str, str]) -> dict[str, Any]:
    redacted = redact_document(dict(sorted(env.items())))
    return redacted if isinstance(redacted, dict) else {}


def _health(report: ModuleReport) -> dict[str, Any]:
    return {
        "health": report.health.value,
        **({} if report.error_class is None else {"errorClass": report.error_class.value}),
        **({} if report.next_attempt is None else {"nextAttempt": _time(report.next_attempt)}),
    }


def _release(release: ReleaseReport) -> dict[str, Any]:
    optional = {
        "result": None if release.result is None else release.result.value,
        "errorClass": None if release.error_class is None else release.error_class.value,
        "description": _cut(release.description, DEPLOYMENT_DESCRIPTION_BYTES) or None,
        "previousDigest": release.previous_digest,
        "nextAttempt": None if release.next_attempt is None else _time(release.next_attempt),
    }
    return {
        "digest": release.digest,
        "phase": release.phase,
        "attempt": release.attempt,
        "desiredVersion": release.desired_version,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _local_release(local: Mapping[str, Any]) -> dict[str, Any]:
    return {**local, "source": _cut(str(local["source"]), SOURCE_BYTES)}


def _client(client: ClientReport) -> dict[str, Any]:
    return {
        "status": "Connected" if client.connected else "Disconnected",
        "lastConnectedTimeUtc": _time(client.last_connected),
        "lastDisconnectedTimeUtc": _time(client.last_disconnected),
    }


def _twin_key(name: str) -> str:
    """Device ids may hold characters that keys of a twin may not; edgeHub writes them percent-encoded, too."""
    return (
        name.replace("%", "%25")
        .replace("$", "%24")
        .replace(".", "%2E")
        .replace(" ", "%20")
        .replace("#", "%23")
    )


def _time(moment: datetime | None) -> str:
    return NEVER if moment is None else format_time(moment)


def _cut(text: str, limit_bytes: int = STATUS_DESCRIPTION_BYTES) -> str:
    """`text` without secrets, in at most `limit_bytes` of UTF-8."""
    encoded = redact_text(text).encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    ellipsis = "…"
    return encoded[: limit_bytes - len(ellipsis.encode())].decode("utf-8", "ignore") + ellipsis
