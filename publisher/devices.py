"""Devices from the publisher's side: the agent's configuration, and what a device has reported."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError
from edge_contracts.release import ReleaseResult
from edge_contracts.sas import ConnectionString, split_authority
from publisher.embedded_hub import HubEndpoint
from publisher.errors import UsageError
from publisher.hub_client import DeviceIdentity, HubClient
from publisher.private_file import write_private

EDGE_AGENT = "$edgeAgent"
POLL_S = 0.5
# IoT Hub, "Identity registry": up to 128 of these.
DEVICE_ID = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}")


def check_device_id(text: str) -> str:
    """The id itself.

    Raises:
        UsageError: it could be no device's.
    """
    if not DEVICE_ID.fullmatch(text):
        raise UsageError(
            f"a device's id must be 1 to 128 of A-Z a-z 0-9 and -:.+%_#*?!(),=@;$', not {text!r}", where=text
        )
    return text


class NoDeploymentError(PublishError):
    """The device has no deployment, so there is nothing to wait for."""

    code = "no-deployment"


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
    host_name, _ = split_authority(endpoint.authority)
    return ConnectionString(
        host_name=host_name, device_id=device.device_id, shared_access_key=device.primary_key
    )


def write_agent_config(
    directory: Path, endpoint: HubEndpoint, device: DeviceIdentity, *, edge_hub_host: str, python: str
) -> AgentConfig:
    """Write what `edge-agent run` needs into `directory`: settings, connection string, the hub's authority; all 0600.

    Raises:
        PublishError: it cannot be written, or there is a configuration already, which is left as it is.
    """
    prepare_agent_folder(directory)
    connection_file = directory / "connection-string"
    write_private(connection_file, device_connection_string(endpoint, device).format() + "\n")
    ca_file = None
    if endpoint.ca_file is not None:
        ca_file = directory / "hub-ca.pem"
        write_private(ca_file, endpoint.ca_file.read_text(encoding="utf-8"))
    _, https_port = split_authority(endpoint.authority)
    # The settings last: a folder that has them has the rest, too.
    write_private(
        directory / "config.toml",
        _AGENT_CONFIG.format(
            https_port=https_port or 443,
            ca_line='ca_file = "hub-ca.pem"' if ca_file else '# ca_file = "hub-ca.pem"',
            python=json.dumps(python, ensure_ascii=False),  # a JSON string is a TOML string
            edge_hub_host=json.dumps(edge_hub_host, ensure_ascii=False),
        ),
    )
    return AgentConfig(directory / "config.toml", connection_file, ca_file)


def prepare_agent_folder(directory: Path) -> None:
    """Make the folder of a new agent's configuration.

    Raises:
        PublishError: it cannot be made, or an agent's configuration is there.
    """
    config_file = directory / "config.toml"
    if config_file.exists():
        raise PublishError(
            f"{config_file} is there already: give another directory, or remove it",
            code="agent-config",
            where=str(config_file),
        )
    try:
        # To be passed through, not listed: in the tiers without mounts a module's own user reaches its layers by path.
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise PublishError(
            f"no agent can be configured in {directory}: {error.strerror or error}",
            code="agent-config",
            where=str(directory),
        ) from error


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
python = {python}

[edge_hub]
host = {edge_hub_host}
"""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a device is with its desired deployment.

    Attributes:
        has_deployment: whether it was given one at all.
        reported_version: the desired version that the device last dealt with, 0 for none.
        code, description: its `lastDesiredStatus`.
        result: a `ReleaseResult`'s value for the desired version; empty while it is under way.
        connected: whether its agent is at the hub now.
    """

    has_deployment: bool
    desired_version: int
    reported_version: int
    code: int | None
    description: str
    result: str
    modules: Mapping[str, Any]
    reported: Mapping[str, Any]
    connected: bool = False

    @property
    def is_done(self) -> bool:
        return bool(self.result)


# What `lastDesiredStatus` alone says: of any edge agent, when it has dealt with the version. A manifest that cannot be
# used never becomes a release. 406 and 500 are under way: the device goes on trying.
_RESULT_OF_CODE: Mapping[int, ReleaseResult] = {
    200: ReleaseResult.SUCCEEDED,
    400: ReleaseResult.REJECTED,
    412: ReleaseResult.REJECTED,
    417: ReleaseResult.REJECTED,
}


def read_rollout(client: HubClient, device_id: str) -> Rollout:
    """What `$edgeAgent` of this device was asked and what it has reported."""
    twin = client.get_twin(device_id, EDGE_AGENT)
    reported = twin.reported
    status = reported.get("lastDesiredStatus") or {}
    return Rollout(
        has_deployment=any(not key.startswith("$") for key in twin.desired),
        desired_version=twin.desired_version,
        reported_version=int(reported.get("lastDesiredVersion") or 0),
        code=status.get("code"),
        description=status.get("description") or "",
        result=_result(reported, twin.desired_version),
        modules=reported.get("modules") or {},
        reported=reported,
        connected=twin.connected,
    )


def _result(reported: Mapping[str, Any], desired_version: int) -> str:
    """The result for this very version: our agent's own word if it has one, else what the status code means."""
    release = (reported.get("edgewright") or {}).get("release") or {}
    if release.get("desiredVersion") == desired_version:
        return str(release.get("result") or "")
    if reported.get("lastDesiredVersion") != desired_version:
        return ""
    code = (reported.get("lastDesiredStatus") or {}).get("code", 0)
    return _RESULT_OF_CODE.get(code, "")


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
        NoDeploymentError: there is none.
        WaitTimeoutError: it has not, in `timeout_s`.
    """
    deadline = clock() + timeout_s
    while True:
        rollout = read_rollout(client, device_id)
        if not rollout.has_deployment:
            raise NoDeploymentError(
                f"device {device_id!r} has no deployment to wait for",
                where=device_id,
                next_command=f"edgewright manifest apply FILE --device {device_id}",
            )
        if rollout.is_done:
            return rollout
        if clock() >= deadline:
            raise WaitTimeoutError(
                f"device {device_id!r} has not finished deployment {rollout.desired_version} in {timeout_s:g} s: "
                f"{_last_report(rollout)}",
                where=device_id,
                next_command=f"edgewright device show {device_id}",
            )
        sleep(POLL_S)


def _last_report(rollout: Rollout) -> str:
    if rollout.code is None:
        return "it has reported nothing yet; is its agent running?"
    words = f": {rollout.description}" if rollout.description else ""
    return f"it last reported deployment {rollout.reported_version or 'none'} with code {rollout.code}{words}"
