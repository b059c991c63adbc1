"""clock: the machine's clock is plausible; tokens and certificates are refused by a clock that is far off."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig

EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)


def judge(now: datetime) -> Finding:
    """What to say of a clock that shows `now`."""
    if EARLIEST <= now < LATEST:
        return Finding(Outcome.OK, now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    text = f"the clock shows {now:%Y-%m-%d}, which is before {EARLIEST:%Y-%m-%d} or after {LATEST:%Y-%m-%d}"
    return Finding(Outcome.ERROR, text, "set the clock, or let timedatectl set-ntp true do it")


def _run(config: AgentConfig) -> Finding:
    return judge(datetime.fromtimestamp(time.time(), UTC))


CHECK = Check("clock", "the clock is plausible, since tokens and certificates depend on it", _run)
