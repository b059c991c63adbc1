"""hub-mqtt: the hub answers on 8883, with a certificate that this device trusts."""

from __future__ import annotations

from edge_agent.checks import Check, Finding
from edge_agent.checks._tls import try_tls
from edge_agent.config import AgentConfig

MQTT_PORT = 8883


def _run(config: AgentConfig) -> Finding:
    return try_tls(config, MQTT_PORT)


CHECK = Check("hub-mqtt", "TCP and TLS to the hub on 8883 (twins and telemetry)", _run)
