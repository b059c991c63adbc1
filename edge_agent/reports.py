"""What the agent reports: pure functions from its state to the official reported properties.

`lastDesiredVersion` is the version that was last dealt with, so that "desired `$version` equals lastDesiredVersion
and code 200" means that it is done (IoT Edge's own test). While an attempt gets on, the one before is still the last.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from edge_agent.desired import Verdict, manifest_of
from edge_agent.listing import ModuleState
from edge_agent.local_release import LocalRelease
from edge_agent.planner import Current, StepFailure
from edge_agent.release import ReleaseRecord
from edge_containers.runtime import RuntimeReport
from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings
from edge_contracts.release import ErrorClass, ReleaseResult
from edge_contracts.reported import (
    ClientReport,
    DeploymentStatusCode,
    Health,
    ModuleReport,
    ReleaseReport,
    RuntimeInfo,
    RuntimeStatus,
    edge_agent_reported,
    edge_hub_reported,
)

HEALTH = {
    "ready": Health.HEALTHY,
    "not-ready": Health.STARTING,
    "unknown": Health.UNKNOWN,
    "none": Health.UNKNOWN,
}


def agent_report(
    *,
    verdict: Verdict | None,
    current: Current,
    states: Iterable[ModuleState],
    runtime: RuntimeReport,
    started_at: datetime,
    edge_hub_problem: str,
    local: LocalRelease | None,
    version: str,
    clock: float,
    now: datetime,
) -> dict[str, Any]:
    """The whole reported properties of `$edgeAgent`.

    Args:
        verdict: on the desired properties last received; None before the first.
        local: what was applied on the device itself last.
        clock: the agent's monotonic clock, which `current` counts in.
    """
    record = current.record
    number, code, description = deployment_status(verdict, current)
    manifest = _manifest(record, verdict)
    hub_status = RuntimeStatus.FAILED if edge_hub_problem else RuntimeStatus.RUNNING
    return edge_agent_reported(
        desired_version=max(0, number),  # a release applied here is of no desired version
        code=code,
        description=description,
        runtime=RuntimeInfo(
            platform.system().lower(),
            platform.machine(),
            platform.release(),
            runtime.kind,
            runtime.tier,
            runtime.reason,
        ),
        edge_agent=ModuleReport(manifest.edge_agent, RuntimeStatus.RUNNING, last_start=started_at),
        edge_hub=ModuleReport(manifest.edge_hub, hub_status, edge_hub_problem, last_start=started_at),
        modules=_module_reports(record, states, now.timestamp() - current.ready_timeout_s),
        release=_release_report(current, clock, now),
        local_release=local.report() if local else None,
        agent_version=version,
    )


def hub_report(
    *,
    number: int,
    problem: ContractError | None,
    clients: Mapping[str, ClientReport],
    version: str,
) -> dict[str, Any]:
    """The whole reported properties of `$edgeHub`; `problem` is why its desired properties were refused."""
    code = DeploymentStatusCode.of_error(problem) if problem else DeploymentStatusCode.SUCCESSFUL
    return edge_hub_reported(
        desired_version=number,
        code=code,
        description=problem.message if problem else "",
        clients=clients,
        agent_version=version,
    )


def deployment_status(verdict: Verdict | None, current: Current) -> tuple[int, DeploymentStatusCode, str]:
    """`lastDesiredVersion`, and code and description of `lastDesiredStatus`."""
    if verdict is not None and verdict.release is None:
        return verdict.version, verdict.code, verdict.description
    record, failed = current.record, waiting_failure(current)
    if record.attempt is not None and failed is not None:
        text = f"{record.attempt.phase.value}: {failed.failure.description}; it will be tried again"
        return record.attempt.release.number, DeploymentStatusCode.FAILED, text
    if record.last is None:
        return 0, DeploymentStatusCode.UNKNOWN, "no deployment has been completed yet"
    if record.last.result is ReleaseResult.SUCCEEDED:
        return record.last.number, DeploymentStatusCode.SUCCESSFUL, ""
    text = f"{record.last.result.value}: {record.last.description}"
    return record.last.number, DeploymentStatusCode.FAILED, text


def waiting_failure(current: Current) -> StepFailure | None:
    """The failure that holds up the attempt until its next try."""
    attempt = current.record.attempt
    if attempt is None:
        return None
    keys = {("pull", goal.image) for goal in attempt.release.modules}
    keys |= {("identity", goal.name) for goal in attempt.release.modules}
    return next((failed for key, failed in current.failures.items() if key in keys), None)


def _manifest(record: ReleaseRecord, verdict: Verdict | None) -> DeploymentManifest:
    """The manifest that names the system modules' images: the newest that is valid."""
    release = (verdict.release if verdict else None) or record.committed
    return manifest_of(release) if release else DeploymentManifest.assemble((), {})


def _module_reports(
    record: ReleaseRecord, states: Iterable[ModuleState], late: float
) -> dict[str, ModuleReport]:
    """By module; one that started before `late` has had its time to become ready."""
    reports = {}
    for state in states:
        settings = _settings(record, state)
        if settings is not None:
            reports[state.goal.name] = _module_report(settings, state, late)
    return reports


def _settings(record: ReleaseRecord, state: ModuleState) -> ModuleSettings | None:
    for release in (record.committed, record.attempt.release if record.attempt else None):
        if release is not None and any(goal == state.goal for goal in release.modules):
            return manifest_of(release).modules[state.goal.name]
    return None


def _module_report(settings: ModuleSettings, state: ModuleState, late: float) -> ModuleReport:
    overdue = state.health == "not-ready" and (state.started_at or 0.0) < late
    ended_badly = state.exit_code not in (None, 0)
    words = f"{state.summary}: {state.last_words}" if state.last_words else state.summary
    return ModuleReport(
        settings,
        RuntimeStatus(state.status),
        words,
        image_hash=str(ImageRef.parse(state.goal.image).digest or ""),
        exit_code=state.exit_code or 0,
        restart_count=state.crashes,
        last_start=_utc(state.started_at),
        last_exit=_utc(state.finished_at),
        last_restart=_utc(state.started_at) if state.crashes else None,
        health=Health.UNHEALTHY if overdue else HEALTH[state.health],
        error_class=ErrorClass.CRASH if ended_badly else None,
        next_attempt=_utc(state.next_attempt),
    )


def _release_report(current: Current, clock: float, now: datetime) -> ReleaseReport | None:
    record = current.record
    serving = record.committed.digest if record.committed else None
    if record.attempt is not None:
        failed = waiting_failure(current)
        failure = record.attempt.failure or (failed.failure if failed else None)
        return ReleaseReport(
            record.attempt.release.digest,
            record.attempt.phase.value,
            attempt=1 + (failed.count if failed else 0),
            desired_version=max(0, record.attempt.release.number),
            error_class=failure.error_class if failure else None,
            description=failure.description if failure else "",
            previous_digest=serving,
            next_attempt=_utc(now.timestamp() + failed.retry_at - clock) if failed else None,
        )
    last = record.last
    if last is None:
        return None
    previous = record.previous.digest if record.previous else None
    return ReleaseReport(
        last.digest,
        "idle",
        last.result,
        desired_version=max(0, last.number),
        error_class=last.error_class,
        description=last.description,
        previous_digest=previous if last.result is ReleaseResult.SUCCEEDED else serving,
    )


def _utc(seconds: float | None) -> datetime | None:
    """Whole seconds: a report must not change because a file system rounds its times differently."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)
