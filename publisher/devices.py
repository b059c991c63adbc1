"""Devices from the publisher's side: the agent's configuration, and what a device has reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError
from edge_contracts.sas import ConnectionString
from publisher.embedded_hub import HubEndpoint
from publisher.hub_client import DeviceIdentity, HubClient

EDGE_AGENT = "$edgeAgent"
POLL_S = 0.5


class WaitTimeoutError(PublishError):
    """The device did not report a result in time; the deployment stays and it will go on."""

    code = "wait-timeout"
    temporary = True


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What `write_agent_config` wrote."""

    config_file: Path
    connection_string_file: Path
    ca_file: Path | None


def device_connection_string(endpoint: HubEndpoint, device: DeviceIdentity) -> ConnectionString:
    """What the device presents; without the service's port: devices have MQTT's 8883 and `https_port`."""
    service = ConnectionString.parse(endpoint.connection_string.reveal())
    return ConnectionString(
        host_name=service.host_name, device_id=device.device_id, shared_access_key=device.primary_key
    )


def write_agent_config(
    directory: Path, endpoint: HubEndpoint, device: DeviceIdentity, *, edge_hub_host: str, python: str
) -> AgentConfig:
    """Write what `edge-agent run` needs into `directory`: settings, connection string (0600), the hub's authority.

    Raises:
        PublishError: there is a configuration already; it is left as it is.
    """
    config_file = directory / "config.toml"
    if config_file.exists():
        raise PublishError(
            f"{config_file} is there already: give another directory, or remove it",
            code="agent-config",
            where=str(config_file),
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection_file = directory / "connection-string"
    _write(connection_file, device_connection_string(endpoint, device).format() + "\n")
    ca_file = None
    if endpoint.ca_file is not None:
        ca_file = directory / "hub-ca.pem"
        _write(ca_file, endpoint.ca_file.read_text())
    service = ConnectionString.parse(endpoint.connection_string.reveal())
    _write(
        config_file,
        _AGENT_CONFIG.format(
            https_port=service.port or 443,
            ca_line='ca_file = "hub-ca.pem"' if ca_file else '# ca_file = "hub-ca.pem"',
            python=python,
            edge_hub_host=edge_hub_host,
        ),
    )
    return AgentConfig(config_file, connection_file, ca_file)


_AGENT_CONFIG = """\
# Settings of this device's edge agent: edge-agent --config THIS run
# Paths are relative to this file.

[hub]
connection_string_file = "connection-string"
https_port = {https_port}
{ca_line}

[agent]
state_dir = "state"

[process]
python = "{python}"

[edge_hub]
host = "{edge_hub_host}"
"""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a device is with its desired deployment; `result` is empty while it is under way."""

    desired_version: int
    reported_version: int
    code: int | None
    description: str
    result: str
    modules: Mapping[str, Any]
    reported: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        return self.reported_version == self.desired_version and bool(self.result)


def read_rollout(client: HubClient, device_id: str) -> Rollout:
    """What `$edgeAgent` of this device was asked and what it has reported."""
    twin = client.get_twin(device_id, EDGE_AGENT)
    reported = twin.reported
    status = reported.get("lastDesiredStatus") or {}
    release = (reported.get("edgewright") or {}).get("release") or {}
    is_current = reported.get("lastDesiredVersion") == twin.desired_version
    code = status.get("code")
    result = release.get("result") if is_current else None
    if result is None and is_current and code not in (None, 200, 406):
        result = "rejected"  # a manifest that could not be read never became a release
    return Rollout(
        desired_version=twin.desired_version,
        reported_version=int(reported.get("lastDesiredVersion", 0)),
        code=code,
        description=status.get("description", ""),
        result=result or "",
        modules=reported.get("modules") or {},
        reported=reported,
    )


def wait_for_rollout(
    client: HubClient,
    device_id: str,
    timeout_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Rollout:
    """Wait until the device has reported a terminal result for its desired version.

    Raises:
        WaitTimeoutError: it has not, in `timeout_s`.
    """
    deadline = clock() + timeout_s
    while True:
        rollout = read_rollout(client, device_id)
        if rollout.is_done:
            return rollout
        if clock() >= deadline:
            raise WaitTimeoutError(
                f"device {device_id!r} has not finished deployment {rollout.desired_version} in {timeout_s:g} s: "
                f"it last reported {rollout.reported_version or 'nothing'} with code {rollout.code}",
                where=device_id,
                next_command=f"edgewright device show {device_id}",
            )
        sleep(POLL_S)


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)
