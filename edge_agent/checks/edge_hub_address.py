"""edge-hub-address: the local MQTT server's address is free, or our own agent listens there."""

from __future__ import annotations

import socket

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig
from edge_agent.control import call
from edge_contracts.errors import AgentError


def _run(config: AgentConfig) -> Finding:
    host, port = config.edge_hub_host, config.edge_hub_port
    mend = "set edge_hub.host to a free address of this machine, such as 127.0.0.3; stock SDKs need port 8883"
    try:
        with socket.create_server((host, port), reuse_port=False):
            return Finding(Outcome.OK, f"{host}:{port} is free")
    except OSError as error:
        if _is_ours(config):
            return Finding(Outcome.OK, f"{host}:{port} is served by this device's agent")
        return Finding(Outcome.ERROR, f"{host}:{port} cannot be listened on: {error.strerror}", mend)


def _is_ours(config: AgentConfig) -> bool:
    try:
        return not call(config.state_dir, "status")["edgeHub"]["problem"]
    except AgentError:
        return False


CHECK = Check("edge-hub-address", "modules can reach the device's MQTT server", _run)
