"""hub-https: the hub answers on hub.https_port, where module identities are made."""

from __future__ import annotations

from edge_agent.checks import Check, Finding
from edge_agent.checks._tls import try_tls
from edge_agent.config import AgentConfig


def _run(config: AgentConfig) -> Finding:
    return try_tls(config, config.https_port)


CHECK = Check("hub-https", "TCP and TLS to the hub on hub.https_port (module identities)", _run)
