"""connection-string: the device's connection string is there, private, and a device's."""

from __future__ import annotations

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig, ConfigError


def _run(config: AgentConfig) -> Finding:
    try:
        connection = config.connection_string()
    except ConfigError as error:
        return Finding(Outcome.ERROR, error.message, error.next_command or "")
    if connection.port is not None:
        return Finding(
            Outcome.ERROR,
            f"HostName must be without a port, not with {connection.port}: devices reach the hub on 8883",
            "put the HTTPS port into hub.https_port",
        )
    return Finding(Outcome.OK, f"device {connection.device_id} of hub {connection.host_name}")


CHECK = Check("connection-string", "the connection string is a device's, in a file for its owner alone", _run)
