"""The state of each module as people and the hub see it: one value per module, from the record and an observation.

| status  | meaning                                                                                   |
| ------- | ----------------------------------------------------------------------------------------- |
| running | its process runs                                                                          |
| backoff | it ended and will be started again at `next_attempt`                                      |
| failed  | it ended with an error and its restartPolicy leaves it so                                 |
| stopped | it ended well, or is to be stopped                                                        |
| unknown | it should run and has not been started yet                                                |
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.observe import goal_key
from edge_agent.planner import Current, Health, restarts, serving_goals
from edge_agent.release import ModuleGoal, ReleaseRecord
from edge_containers.runtime import ModuleStatus, RunningModule
from edge_contracts.image_ref import ImageRef

HEALTH_NAMES = {
    Health.UNKNOWN: "unknown",
    Health.NOT_READY: "not-ready",
    Health.READY: "ready",
    Health.NONE: "none",
}


@dataclass(frozen=True, slots=True)
class ModuleState:
    """One module, as `edge-agent list` shows it and the reported properties say it. Times: seconds since the epoch."""

    goal: ModuleGoal
    status: str
    summary: str
    """Why it is in this status, in words that do not change with the time."""

    description: str
    health: str = "unknown"
    instance: str = ""
    pid: int | None = None
    scoring_uri: str | None = None
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    crashes: int = 0
    next_attempt: float | None = None
    last_words: str = ""

    def as_row(self) -> dict[str, Any]:
        """The row of `edge-agent list -o json`."""
        return {
            "name": self.goal.name,
            "status": self.status,
            "description": self.description,
            "image": self.goal.image,
            "digest": str(ImageRef.parse(self.goal.image).digest or ""),
            "scoringUri": self.scoring_uri,
            "health": self.health,
            "instance": self.instance,
            "pid": self.pid,
        }


def module_states(
    record: ReleaseRecord,
    modules: Iterable[RunningModule],
    current: Current | None = None,
    *,
    clock: float = 0.0,
    now: float | None = None,
) -> tuple[ModuleState, ...]:
    """The modules of the release that serves, then those that only the attempt names.

    Args:
        current: the agent's observation; None when no agent runs, and only the runtime is asked.
        clock: the agent's monotonic clock, which `current` counts in.
        now: wall clock, seconds since the epoch.
    """
    wall = time.time() if now is None else now
    goals = {goal.name: goal for goal in record.attempt.release.modules} if record.attempt else {}
    goals |= {goal.name: goal for goal in serving_goals(record)}
    starts = latest_starts(modules)
    return tuple(
        _state(goals[name], starts.get(goals[name].key), current, clock, wall) for name in sorted(goals)
    )


def latest_starts(modules: Iterable[RunningModule]) -> Mapping[tuple[str, str], RunningModule]:
    """The start of each goal that counts: the one that runs, else the latest."""
    found: dict[tuple[str, str], RunningModule] = {}
    for module in modules:
        known = found.get(goal_key(module))
        if known is None or module.status is ModuleStatus.RUNNING or known.status is ModuleStatus.EXITED:
            found[goal_key(module)] = module
    return found


def _state(
    goal: ModuleGoal, start: RunningModule | None, current: Current | None, clock: float, wall: float
) -> ModuleState:
    if start is None:
        absence = _absence(goal, current)
        return ModuleState(goal, "stopped" if not goal.running else "unknown", absence, absence)
    observed = current.instance(goal.key) if current else None
    record = current.restarts.get(goal.key) if current else None
    health = HEALTH_NAMES[observed.health] if observed else "unknown"
    due = record.due if record else None
    waits = (
        start.status is ModuleStatus.EXITED
        and goal.running
        and restarts(goal.restart_policy, start.exit_code)
    )
    status = _status(goal, start, waits)
    next_attempt = wall + due - clock if waits and due is not None else None
    return ModuleState(
        goal,
        status,
        _summary(start, status),
        _description(start, status, next_attempt, wall),
        health=health if start.status is ModuleStatus.RUNNING else "none",
        instance=start.instance_id,
        pid=start.pid,
        scoring_uri=_scoring_uri(start),
        exit_code=start.exit_code,
        started_at=start.started_at,
        finished_at=start.finished_at,
        crashes=record.crashes if record else 0,
        next_attempt=next_attempt,
        last_words=observed.last_words if observed else "",
    )


def _status(goal: ModuleGoal, start: RunningModule, waits: bool) -> str:
    if start.status is ModuleStatus.RUNNING:
        return "running"
    if waits:
        return "backoff"
    return "stopped" if start.exit_code == 0 or not goal.running else "failed"


def _absence(goal: ModuleGoal, current: Current | None) -> str:
    if not goal.running:
        return "Stopped as desired"
    if current is not None and goal.image in current.pulling:
        return "Pulling its image"
    failed = current.failures.get(("pull", goal.image)) if current else None
    return f"Not started: {failed.failure.description}" if failed else "Not started yet"


def _summary(start: RunningModule, status: str) -> str:
    if start.status is ModuleStatus.RUNNING:
        return "Up"
    reason = f", {start.reason}" if start.reason else ""
    return f"{'Stopped' if status == 'stopped' else 'Failed'} ({start.exit_code}{reason})"


def _description(start: RunningModule, status: str, next_attempt: float | None, wall: float) -> str:
    summary = _summary(start, status)
    if start.status is ModuleStatus.RUNNING:
        return f"{summary} {_span(wall - start.started_at)}"
    ago = f" {_span(wall - start.finished_at)} ago" if start.finished_at else ""
    again = f", next start in {_span(next_attempt - wall)}" if next_attempt is not None else ""
    return summary + ago + again


def _scoring_uri(start: RunningModule) -> str | None:
    if start.public_address is None:
        return None
    host, port = start.public_address
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    return f"http://{shown}:{port}/score"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    whole = max(0, int(seconds))
    return f"{whole} second{'' if whole == 1 else 's'}"
