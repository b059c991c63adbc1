"""`plan(desired, current, clock) → steps`: what to do next, decided from values alone.

Rules:

1. The agent plans, executes, observes and plans again; a step that changes the release record stands alone in its
   plan, because everything after it depends on the new record.
2. Until an attempt is SWITCHING, the committed release is kept running; the attempt's instances start beside it, held.
3. Nothing is started before every image of the release is on the disk, and nothing old is stopped before every new
   instance is ready.
4. Instances that belong neither to the committed release nor to the attempt are stopped and removed.
5. When everything is as desired the plan is empty. Waiting is a step.

Worked example, version 2 of module `scorer` after version 1 is committed:

    BeginRelease                     → PULLING
    PullImage(v2)                    … Wait while it is pulled
    AdvanceRelease(STARTING)
    StartInstance(v2, hold=True)     … AwaitReady(v2, deadline)
    AdvanceRelease(SWITCHING)
    ActivateInstance(v2), then StopInstance(v1), RemoveInstance(v1)
    CommitRelease
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_agent.backoff import RestartRecord
from edge_agent.release import Attempt, Failure, ModuleGoal, Phase, Release, ReleaseRecord
from edge_contracts.release import ErrorClass

START_TRIES = 3
"""How often the old release is started again before a roll-back is given up."""

NO_HEALTH_GRACE_S = 2.0
"""A module that serves no health socket counts as ready when it has lived this long."""


class Health(Enum):
    """What an instance's `/ready` said."""

    UNKNOWN = "unknown"
    NOT_READY = "not-ready"
    READY = "ready"
    NONE = "none"
    """It has no health socket."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One observed start of a module instance.

    A runtime wants another id for every start; `instance_id` is the goal's, `runtime_id` the start's.
    """

    name: str
    instance_id: str
    runtime_id: str
    running: bool = True
    serving: bool = False
    health: Health = Health.UNKNOWN
    exit_code: int | None = None
    first_seen: float = 0.0
    last_words: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Name and instance id: what a goal is compared with."""
        return (self.name, self.instance_id)

    @property
    def start_key(self) -> tuple[str, str]:
        """Name and runtime id: what the runtime calls it."""
        return (self.name, self.runtime_id)

    def is_ready(self, clock: float) -> bool:
        """Whether the health gate lets it through."""
        if self.health is Health.NONE:
            return self.running and clock >= self.first_seen + NO_HEALTH_GRACE_S
        return self.running and self.health is Health.READY


@dataclass(frozen=True, slots=True)
class StepFailure:
    """How often a step failed, and when it may be tried again."""

    count: int
    failure: Failure
    temporary: bool
    retry_at: float


@dataclass(frozen=True, slots=True)
class Current:
    """What was observed. Times are the agent's monotonic clock."""

    record: ReleaseRecord = field(default_factory=ReleaseRecord)
    instances: tuple[Instance, ...] = ()
    """Oldest first."""

    images: frozenset[str] = frozenset()
    pulling: frozenset[str] = frozenset()
    identities: frozenset[str] = frozenset()
    workloads: frozenset[str] = frozenset()
    restarts: Mapping[tuple[str, str], RestartRecord] = field(default_factory=dict)
    restart_requests: frozenset[str] = frozenset()
    failures: Mapping[tuple[str, str], StepFailure] = field(default_factory=dict)
    """Keyed by step kind (`pull`, `start`, `activate`, `identity`, `workload`) and what it concerned."""

    ready_timeout_s: float = 60.0

    def instance(self, key: tuple[str, str]) -> Instance | None:
        """The start of that goal that counts: the one that runs, else the latest."""
        starts = [instance for instance in self.instances if instance.key == key]
        preferred = [instance for instance in starts if instance.running] or starts
        return preferred[-1] if preferred else None


@dataclass(frozen=True, slots=True)
class BeginRelease:
    """Record that `release` is now tried."""

    release: Release


@dataclass(frozen=True, slots=True)
class AdvanceRelease:
    """Record that the attempt reached `phase`."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class CommitRelease:
    """Record that the attempt is now the committed release."""


@dataclass(frozen=True, slots=True)
class SupersedeRelease:
    """Record that `newer` takes the attempt's place."""

    newer: Release


@dataclass(frozen=True, slots=True)
class RollBack:
    """Record why the attempt failed; unless nothing was started yet, the old release is restored next."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class MarkResult:
    """Record a terminal result that needs no other change: how a roll-back, a repetition or a refusal ended."""

    result: str
    release: Release


@dataclass(frozen=True, slots=True)
class PullImage:
    """Fetch and verify an image in the background."""

    image: str
    release: str


@dataclass(frozen=True, slots=True)
class EnsureIdentity:
    """Make the module's identity at the hub, with a key of the agent's choice."""

    name: str


@dataclass(frozen=True, slots=True)
class RemoveIdentity:
    """Remove the identity of a module that no release names any more."""

    name: str


@dataclass(frozen=True, slots=True)
class EnsureWorkload:
    """Serve the module's workload socket."""

    name: str


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start a module instance; held, it serves its health socket only."""

    goal: ModuleGoal
    release: str
    hold: bool


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Look again soon whether the instance is ready, until `deadline`."""

    name: str
    runtime_id: str
    deadline: float


@dataclass(frozen=True, slots=True)
class ActivateInstance:
    """Let a held instance serve its public socket."""

    name: str
    runtime_id: str


@dataclass(frozen=True, slots=True)
class StopInstance:
    """Ask an instance to end, and end it."""

    name: str
    runtime_id: str


@dataclass(frozen=True, slots=True)
class RemoveInstance:
    """Forget an instance that ended."""

    name: str
    runtime_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for `subject` before `until`."""

    until: float
    subject: str


Step = (
    BeginRelease
    | AdvanceRelease
    | CommitRelease
    | SupersedeRelease
    | RollBack
    | MarkResult
    | PullImage
    | EnsureIdentity
    | RemoveIdentity
    | EnsureWorkload
    | StartInstance
    | AwaitReady
    | ActivateInstance
    | StopInstance
    | RemoveInstance
    | Wait
)
RECORD_STEPS = (BeginRelease, AdvanceRelease, CommitRelease, SupersedeRelease, RollBack, MarkResult)
WAITING_STEPS = (AwaitReady, Wait)


def plan(desired: Release | None, current: Current, clock: float) -> tuple[Step, ...]:
    """The next steps towards `desired`.

    Args:
        desired: the release asked for; None when there is none that is valid, so the device stays with what it has.
        current: what was observed.
        clock: the agent's monotonic clock, seconds.
    """
    turn = _turn(desired, current.record)
    if turn is not None:
        return (turn,)
    attempt = current.record.attempt
    if attempt is None:
        return _deduplicated(_kept(current, clock))
    steps = tuple(_ATTEMPT_STEPS[attempt.phase](attempt, current, clock))
    turns = [step for step in steps if isinstance(step, RECORD_STEPS)]
    if turns:
        return (turns[0],)
    kept = () if attempt.phase is Phase.SWITCHING else _kept(current, clock)
    return _deduplicated((*kept, *steps))


def serving_goals(record: ReleaseRecord) -> tuple[ModuleGoal, ...]:
    """The modules that should be serving at this point of the record."""
    attempt = record.attempt
    if attempt is not None and attempt.phase is Phase.SWITCHING:
        return attempt.release.modules
    return record.committed.modules if record.committed else ()


def _turn(desired: Release | None, record: ReleaseRecord) -> Step | None:
    """The change of the record that `desired` alone asks for."""
    if desired is None:
        return None
    if record.attempt is not None:
        return SupersedeRelease(desired) if record.attempt.release.key != desired.key else None
    if record.has_result(desired):
        return None
    if record.committed is not None and record.committed.digest == desired.digest:
        return MarkResult("settled", desired)
    if record.quarantined(desired) is not None:
        return MarkResult("rejected", desired)
    return BeginRelease(desired)


def _pulling(attempt: Attempt, current: Current, clock: float) -> Iterator[Step]:
    steps = tuple(_pulls(attempt.release, attempt.release.modules, current, clock))
    failures = (current.failures.get(("pull", goal.image)) for goal in attempt.release.modules)
    lasting = [failed for failed in failures if failed is not None and not failed.temporary]
    if lasting:
        yield RollBack(lasting[0].failure)
    elif steps:
        yield from steps
    else:
        yield AdvanceRelease(Phase.STARTING)


def _starting(attempt: Attempt, current: Current, clock: float) -> Iterator[Step]:
    news = _new_goals(attempt, current.record)
    failure = _gate_failure(news, current, clock)
    if failure is not None:
        yield RollBack(failure)
        return
    steps = tuple(step for goal in news for step in _held_start(goal, attempt.release, current, clock))
    yield from steps or (AdvanceRelease(Phase.SWITCHING),)


def _switching(attempt: Attempt, current: Current, clock: float) -> Iterator[Step]:
    """New instances take traffic, then old ones end; what both releases share is supervised meanwhile."""
    release = attempt.release
    news = _new_goals(attempt, current.record)
    failure = _gate_failure(news, current, clock)
    if failure is not None:
        yield RollBack(failure)
        return
    shared = [goal for goal in release.running if goal not in news]
    yield from _supervised(release, shared, current, clock)
    ups = tuple(step for goal in news for step in _switched_on(goal, release, current, clock))
    wanted = frozenset(goal.key for goal in release.running)
    yield from ups or tuple(_gone(current, keep=wanted)) or (CommitRelease(),)


def _rolling_back(attempt: Attempt, current: Current, clock: float) -> Iterator[Step]:
    """Once `_kept` has nothing left to do at once, the old release is whole, or cannot be."""
    committed = current.record.committed
    goals = committed.running if committed else ()
    if any(_cannot_run(goal, current) for goal in goals):
        yield MarkResult("stuck", attempt.release)
        return
    keep = committed.instances if committed else frozenset()
    if not tuple(_gone(current, keep=keep)) and all(_is_back(goal, current) for goal in goals):
        yield MarkResult("rolled-back", attempt.release)


_ATTEMPT_STEPS = {
    Phase.PULLING: _pulling,
    Phase.STARTING: _starting,
    Phase.SWITCHING: _switching,
    Phase.ROLLING_BACK: _rolling_back,
}


def _kept(current: Current, clock: float) -> Iterator[Step]:
    """Keep the committed release running, and nothing but it and the attempt."""
    record, attempt = current.record, current.record.attempt
    committed = record.committed
    keep = committed.instances if committed else frozenset()
    names = {goal.name for goal in committed.modules} if committed else set()
    if attempt is not None:
        names |= {goal.name for goal in attempt.release.modules}
        if attempt.phase is not Phase.ROLLING_BACK:
            keep |= attempt.release.instances
    yield from _gone(current, keep=keep)
    if committed is not None:
        yield from _supervised(committed, committed.running, current, clock)
        yield from _stopped(committed, current, but=_wanted_by(attempt))
    for name in sorted(current.identities - names):
        if not any(instance.name == name for instance in current.instances):
            yield from _unless_failed("identity", name, RemoveIdentity(name), current, clock)


def _supervised(
    release: Release, goals: Iterable[ModuleGoal], current: Current, clock: float
) -> Iterator[Step]:
    """Start, restart and activate the running goals of a release that is committed to."""
    for goal in goals:
        instance = current.instance(goal.key)
        yield from _workload(goal, current, clock)
        if instance is None:
            yield from _fresh_start(goal, release, current, clock)
        elif not instance.running:
            yield from _restarted(goal, release, instance, current, clock)
        elif goal.name in current.restart_requests:
            yield StopInstance(*instance.start_key)
        elif not instance.serving:
            yield from _activated(goal, instance, current, clock)


def _wanted_by(attempt: Attempt | None) -> frozenset[tuple[str, str]]:
    """Instances that an attempt wants running, though the committed release may have the same ones stopped."""
    if attempt is None or attempt.phase is Phase.ROLLING_BACK:
        return frozenset()
    return frozenset(goal.key for goal in attempt.release.running)


def _stopped(release: Release, current: Current, *, but: frozenset[tuple[str, str]]) -> Iterator[Step]:
    for goal in release.modules:
        instance = current.instance(goal.key)
        if not goal.running and goal.key not in but and instance is not None and instance.running:
            yield StopInstance(*instance.start_key)


def _activated(goal: ModuleGoal, instance: Instance, current: Current, clock: float) -> Iterator[Step]:
    """A committed instance is still held when the agent died between committing and activating it."""
    if not instance.is_ready(clock):
        yield AwaitReady(*instance.start_key, deadline=instance.first_seen + current.ready_timeout_s)
        return
    step = ActivateInstance(*instance.start_key)
    yield from _unless_failed("activate", goal.instance_id, step, current, clock)


def _fresh_start(goal: ModuleGoal, release: Release, current: Current, clock: float) -> Iterator[Step]:
    pulls = tuple(_pulls(release, (goal,), current, clock))
    if pulls:
        yield from pulls
        return
    yield from _identified(goal, current, clock)
    if goal.name in current.identities:
        start = StartInstance(goal, release.digest, hold=False)
        yield from _unless_failed("start", goal.instance_id, start, current, clock)


def _restarted(
    goal: ModuleGoal, release: Release, instance: Instance, current: Current, clock: float
) -> Iterator[Step]:
    asked = goal.name in current.restart_requests
    if not asked and not restarts(goal.restart_policy, instance.exit_code):
        return
    record = current.restarts.get(goal.key, RestartRecord())
    due = clock if asked or record.due is None else record.due
    if clock < due:
        yield Wait(due, f"restart of {goal.name}")
        return
    yield from _fresh_start(goal, release, current, clock)


def restarts(policy: str, exit_code: int | None) -> bool:
    """Whether a module that exited is started again.

    `on-unhealthy` is `on-failure`, as in IoT Edge. An unknown exit code (lost with the power) counts as a failure.
    """
    return policy == "always" or (policy in ("on-failure", "on-unhealthy") and exit_code != 0)


def _held_start(goal: ModuleGoal, release: Release, current: Current, clock: float) -> Iterator[Step]:
    """Start `goal` held and wait until it is ready; nothing once it is."""
    instance = current.instance(goal.key)
    if instance is None:
        yield from _identified(goal, current, clock)
        yield from _workload(goal, current, clock)
        # A module scores without its workload socket: better that than not at all.
        served = goal.name in current.workloads or ("workload", goal.name) in current.failures
        if goal.name in current.identities and served:
            yield StartInstance(goal, release.digest, hold=True)
    elif not instance.is_ready(clock):
        yield AwaitReady(*instance.start_key, deadline=instance.first_seen + current.ready_timeout_s)


def _switched_on(goal: ModuleGoal, release: Release, current: Current, clock: float) -> Iterator[Step]:
    instance = current.instance(goal.key)
    if instance is None or not instance.is_ready(clock):
        if instance is None or not instance.serving:
            yield from _held_start(goal, release, current, clock)
    elif not instance.serving:
        yield ActivateInstance(*instance.start_key)


def _gate_failure(goals: Iterable[ModuleGoal], current: Current, clock: float) -> Failure | None:
    """Why one of the instances will not get through the health gate."""
    for goal in goals:
        for kind in ("start", "activate"):
            failed = current.failures.get((kind, goal.instance_id))
            if failed is not None:
                return failed.failure
        instance = current.instance(goal.key)
        if instance is None:
            continue
        if not instance.running:
            return Failure(ErrorClass.CRASH, _last_words(instance))
        late = clock > instance.first_seen + current.ready_timeout_s
        if late and not instance.serving and not instance.is_ready(clock):
            text = f"module {goal.name} was not ready within {current.ready_timeout_s:g} s"
            return Failure(ErrorClass.UNHEALTHY, text)
    return None


def _last_words(instance: Instance) -> str:
    code = "" if instance.exit_code is None else f" with code {instance.exit_code}"
    words = f": {instance.last_words}" if instance.last_words else ""
    return f"module {instance.name} exited{code} before it was ready{words}"


def _new_goals(attempt: Attempt, record: ReleaseRecord) -> tuple[ModuleGoal, ...]:
    """Running goals of the attempt that are not running instances of the committed release already."""
    kept = {goal.key for goal in record.committed.running} if record.committed else set()
    return tuple(goal for goal in attempt.release.running if goal.key not in kept)


def _cannot_run(goal: ModuleGoal, current: Current) -> bool:
    failed = current.failures.get(("start", goal.instance_id))
    crashes = current.restarts.get(goal.key, RestartRecord()).crashes
    instance = current.instance(goal.key)
    down = instance is None or not instance.running
    return down and ((failed is not None and failed.count >= START_TRIES) or crashes >= START_TRIES)


def _is_back(goal: ModuleGoal, current: Current) -> bool:
    instance = current.instance(goal.key)
    if instance is None:
        return False
    if instance.running:
        return instance.serving
    return not restarts(goal.restart_policy, instance.exit_code)


def _pulls(release: Release, goals: Iterable[ModuleGoal], current: Current, clock: float) -> Iterator[Step]:
    for image in sorted({goal.image for goal in goals} - current.images):
        if image in current.pulling:
            yield Wait(math.inf, f"pull of {image}")
        else:
            yield from _unless_failed("pull", image, PullImage(image, release.digest), current, clock)


def _identified(goal: ModuleGoal, current: Current, clock: float) -> Iterator[Step]:
    if goal.name not in current.identities:
        yield from _unless_failed("identity", goal.name, EnsureIdentity(goal.name), current, clock)


def _workload(goal: ModuleGoal, current: Current, clock: float) -> Iterator[Step]:
    if goal.name not in current.workloads:
        yield from _unless_failed("workload", goal.name, EnsureWorkload(goal.name), current, clock)


def _unless_failed(kind: str, subject: str, step: Step, current: Current, clock: float) -> Iterator[Step]:
    failed = current.failures.get((kind, subject))
    if failed is not None and clock < failed.retry_at:
        yield Wait(failed.retry_at, f"{kind} of {subject}")
    else:
        yield step


def _gone(current: Current, *, keep: frozenset[tuple[str, str]]) -> Iterator[Step]:
    """Stop and remove what is not to be kept, and ended starts but a goal's latest (its log tells why)."""
    for instance in current.instances:
        if instance.key not in keep:
            if instance.running:
                yield StopInstance(*instance.start_key)
            yield RemoveInstance(*instance.start_key)
        elif not instance.running and _is_outdated(instance, current):
            yield RemoveInstance(*instance.start_key)


def _is_outdated(instance: Instance, current: Current) -> bool:
    ended = [other for other in current.instances if other.key == instance.key and not other.running]
    return instance.start_key != ended[-1].start_key


def _deduplicated(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(dict.fromkeys(steps))
