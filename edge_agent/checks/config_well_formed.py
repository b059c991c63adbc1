"""config-well-formed: the configuration was read; a failure to read it is reported before any other check."""

from __future__ import annotations

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig


def _run(config: AgentConfig) -> Finding:
    return Finding(Outcome.OK, str(config.path))


CHECK = Check("config-well-formed", "the configuration parses, with known keys and values in range", _run)
