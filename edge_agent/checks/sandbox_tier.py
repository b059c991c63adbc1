"""sandbox-tier: how modules are isolated here, tried by doing."""

from __future__ import annotations

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig
from edge_contracts.errors import EdgewrightError

BEST = "namespaces"
MEND = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces), or run as root"


def _run(config: AgentConfig) -> Finding:
    from edge_agent.run import open_runtime

    try:
        report = open_runtime(config).report()
    except (EdgewrightError, OSError) as error:
        return Finding(Outcome.ERROR, f"no module can be started: {error}", MEND)
    if report.tier == BEST:
        return Finding(Outcome.OK, f"{report.kind}, {report.tier}")
    return Finding(Outcome.WARNING, f"{report.kind}, {report.tier}: {report.reason}", MEND)


CHECK = Check("sandbox-tier", "modules are isolated as well as this kernel allows", _run)
