"""last-release: how the last deployment ended."""

from __future__ import annotations

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig
from edge_agent.store import Store, StoreError
from edge_contracts.release import ReleaseResult


def _run(config: AgentConfig) -> Finding:
    try:
        record = Store(config.state_dir).load_record()
    except StoreError as error:
        return Finding(Outcome.ERROR, error.message, "restore the state folder from a backup")
    if record.attempt is not None:
        return Finding(Outcome.OK, f"release {record.attempt.release.digest} is {record.attempt.phase.value}")
    if record.last is None:
        return Finding(Outcome.OK, "no deployment yet")
    text = (
        f"desired version {record.last.number}: {record.last.result.value} {record.last.description}".strip()
    )
    if record.last.result is ReleaseResult.SUCCEEDED:
        return Finding(Outcome.OK, text)
    return Finding(Outcome.WARNING, text, "deploy a corrected release; edge-agent logs MODULE shows why")


CHECK = Check("last-release", "the last deployment succeeded", _run)
