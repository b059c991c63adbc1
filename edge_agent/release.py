"""The release state machine: what a device has committed to, what it is trying, and what came of it.

Rules:

1. A release is named by its digest (DECISIONS A1); the desired `$version` it arrived with is its *number*.
2. `committed` changes in one place only, `commit`, and only from SWITCHING.
3. A release ends in exactly one terminal result per (digest, number).
4. A failure before anything was started changes nothing: failed-no-change. Any later failure rolls back first.
5. A release that failed is quarantined until its digest changes. Failures to fetch it (wrong password, missing
   image, full disk) say nothing about the release itself, so a new desired `$version` lifts those.
6. A newer desired release supersedes an attempt from any phase.

```
          begin            advance             advance             commit
  (none) ───────► PULLING ─────────► STARTING ─────────► SWITCHING ────────► (none), committed
                     │ fail              │ fail               │ fail
                     ▼                   └──► ROLLING_BACK ◄──┘
          (none), failed-no-change               │ rolled_back | stuck
                                                 ▼
                              (none), failed-rolled-back | failed-unable-to-roll-back
  supersede: any phase ──► PULLING of the newer one (or the same phase, when only the number is newer)
```

Everything here is a value; `store.py` keeps the record on disk by rename, so each transition is one atomic write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from edge_contracts.release import ErrorClass, ReleaseResult

KEPT_RESULTS = 20
KEPT_QUARANTINE = 32
DESCRIPTION_LIMIT = 1024


class Phase(StrEnum):
    """Where an attempt stands; the names appear in reported properties."""

    PULLING = "pulling"
    STARTING = "starting"
    SWITCHING = "switching"
    ROLLING_BACK = "rolling-back"


NEXT_PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.PULLING: frozenset({Phase.STARTING}),
    Phase.STARTING: frozenset({Phase.SWITCHING}),
    Phase.SWITCHING: frozenset(),
    Phase.ROLLING_BACK: frozenset(),
}

FETCH_ERRORS = frozenset({ErrorClass.AUTH, ErrorClass.NOT_FOUND, ErrorClass.NETWORK, ErrorClass.DISK})
"""Why an image could not be had, as opposed to what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ModuleGoal:
    """What the planner needs to know of one module of a release.

    `instance_id` is derived from everything that makes a new process necessary (image, version, env,
    createOptions), so that equal goals of two releases are the same instance and are left alone.
    """

    name: str
    instance_id: str
    image: str
    running: bool = True
    restart_policy: str = "always"
    startup_order: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Name and instance id: what a runtime calls this instance."""
        return (self.name, self.instance_id)


@dataclass(frozen=True, slots=True)
class Release:
    """A whole release: its digest, the desired `$version` it came with, its modules, and its source document."""

    digest: str
    number: int
    modules: tuple[ModuleGoal, ...]
    document: str = ""
    """`$edgeAgent`'s desired properties as JSON: what env and createOptions are read from. Holds credentials."""

    def __repr__(self) -> str:
        return f"Release({self.digest}, number={self.number})"

    @property
    def key(self) -> tuple[str, int]:
        """What a terminal result belongs to."""
        return (self.digest, self.number)

    @property
    def running(self) -> tuple[ModuleGoal, ...]:
        """The modules that should run, in starting order."""
        wanted = [goal for goal in self.modules if goal.running]
        return tuple(sorted(wanted, key=lambda goal: (goal.startup_order, goal.name)))

    @property
    def instances(self) -> frozenset[tuple[str, str]]:
        """Keys of all its instances."""
        return frozenset(goal.key for goal in self.modules)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a release failed."""

    error_class: ErrorClass
    description: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A release under way."""

    release: Release
    phase: Phase = Phase.PULLING
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Terminal:
    """The one terminal result of a (digest, number)."""

    digest: str
    number: int
    result: ReleaseResult
    error_class: ErrorClass | None = None
    description: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """The release and number it is the result of."""
        return (self.digest, self.number)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A release that failed and is not tried again; `number` is set where a newer number lifts it (rule 5)."""

    digest: str
    failure: Failure
    number: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """All that is persisted about releases."""

    committed: Release | None = None
    previous: Release | None = None
    attempt: Attempt | None = None
    quarantine: tuple[Quarantined, ...] = ()
    results: tuple[Terminal, ...] = ()

    @property
    def last(self) -> Terminal | None:
        """The newest terminal result."""
        return self.results[-1] if self.results else None

    def has_result(self, release: Release) -> bool:
        """Whether `release` has had its terminal result; older results of a re-used number don't count."""
        return self.last is not None and self.last.key == release.key

    def quarantined(self, release: Release) -> Quarantined | None:
        """Why `release` must not be tried, if so."""
        for entry in self.quarantine:
            if entry.digest == release.digest and entry.number in (None, release.number):
                return entry
        return None


def begin(record: ReleaseRecord, release: Release) -> ReleaseRecord:
    """Start trying `release`."""
    _require(record.attempt is None, "begin needs no attempt under way")
    _require(not record.has_result(release), "begin needs a release without a result")
    return replace(record, attempt=Attempt(release))


def advance(record: ReleaseRecord, phase: Phase) -> ReleaseRecord:
    """Go to the next phase."""
    attempt = _attempt(record)
    _require(phase in NEXT_PHASES[attempt.phase], f"no way from {attempt.phase} to {phase}")
    return replace(record, attempt=replace(attempt, phase=phase))


def fail(record: ReleaseRecord, failure: Failure) -> ReleaseRecord:
    """End the attempt without a change, or begin to roll it back."""
    attempt = _attempt(record)
    _require(attempt.phase is not Phase.ROLLING_BACK, "a roll-back ends by rolled_back or stuck")
    if attempt.phase is not Phase.PULLING:
        return replace(record, attempt=replace(attempt, phase=Phase.ROLLING_BACK, failure=failure))
    return _ended(_quarantine(record, attempt.release, failure), ReleaseResult.FAILED_NO_CHANGE, failure)


def rolled_back(record: ReleaseRecord) -> ReleaseRecord:
    """The old release is whole again."""
    return _roll_back_ended(record, ReleaseResult.FAILED_ROLLED_BACK)


def stuck(record: ReleaseRecord) -> ReleaseRecord:
    """The old release would not start again; it goes on being supervised, and a newer release may still come."""
    return _roll_back_ended(record, ReleaseResult.FAILED_UNABLE_TO_ROLL_BACK)


def commit(record: ReleaseRecord) -> ReleaseRecord:
    """The attempt becomes the committed release."""
    attempt = _attempt(record)
    _require(attempt.phase is Phase.SWITCHING, "only a switched release is committed")
    committed = replace(record, committed=attempt.release, previous=record.committed)
    return _ended(committed, ReleaseResult.SUCCEEDED, None)


def supersede(record: ReleaseRecord, newer: Release) -> ReleaseRecord:
    """Give the attempt its result and turn to `newer`; the same digest under a newer number goes on where it is."""
    attempt = _attempt(record)
    _require(attempt.release.key != newer.key, "a release does not supersede itself")
    text = f"superseded by desired version {newer.number}"
    if attempt.failure is not None:
        record = _quarantine(record, attempt.release, attempt.failure)
        text = f"{attempt.failure.description}; {text}"
    error = attempt.failure.error_class if attempt.failure else None
    ended = _ended(record, ReleaseResult.SUPERSEDED, Failure(error, text) if error else None, text)
    if attempt.release.digest == newer.digest:
        return replace(ended, attempt=replace(attempt, release=newer))
    return ended


def settle(record: ReleaseRecord, release: Release) -> ReleaseRecord:
    """Record that `release` is what the device runs already."""
    committed = record.committed
    _require(
        committed is not None and committed.digest == release.digest, "settle needs the committed release"
    )
    _require(record.attempt is None and not record.has_result(release), "settle gives a first result")
    result = Terminal(release.digest, release.number, ReleaseResult.SUCCEEDED)
    return replace(record, committed=release, results=_appended(record, result))


def reject(record: ReleaseRecord, release: Release) -> ReleaseRecord:
    """Refuse a quarantined release that came again under a new number."""
    entry = record.quarantined(release)
    if entry is None or record.attempt is not None or record.has_result(release):
        raise ValueError("reject needs a quarantined release without attempt or result")
    text = _clipped(f"this release failed before and is not tried again: {entry.failure.description}")
    result = Terminal(release.digest, release.number, ReleaseResult.REJECTED, entry.failure.error_class, text)
    return replace(record, results=_appended(record, result))


def _attempt(record: ReleaseRecord) -> Attempt:
    if record.attempt is None:
        raise ValueError("no release is under way")
    return record.attempt


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _roll_back_ended(record: ReleaseRecord, result: ReleaseResult) -> ReleaseRecord:
    attempt = _attempt(record)
    if attempt.phase is not Phase.ROLLING_BACK or attempt.failure is None:
        raise ValueError("a roll-back ends only after a failure began it")
    return _ended(_quarantine(record, attempt.release, attempt.failure), result, attempt.failure)


def _ended(
    record: ReleaseRecord, result: ReleaseResult, failure: Failure | None, description: str = ""
) -> ReleaseRecord:
    release = _attempt(record).release
    _require(not record.has_result(release), f"{release} has its terminal result")
    text = failure.description if failure else description
    error = failure.error_class if failure else None
    terminal = Terminal(release.digest, release.number, result, error, _clipped(text))
    return replace(record, attempt=None, results=_appended(record, terminal))


def _quarantine(record: ReleaseRecord, release: Release, failure: Failure) -> ReleaseRecord:
    number = release.number if failure.error_class in FETCH_ERRORS else None
    others = tuple(entry for entry in record.quarantine if entry.digest != release.digest)
    entry = Quarantined(release.digest, replace(failure, description=_clipped(failure.description)), number)
    return replace(record, quarantine=(*others, entry)[-KEPT_QUARANTINE:])


def _appended(record: ReleaseRecord, result: Terminal) -> tuple[Terminal, ...]:
    return (*record.results, result)[-KEPT_RESULTS:]


def _clipped(text: str) -> str:
    return text if len(text) <= DESCRIPTION_LIMIT else text[: DESCRIPTION_LIMIT - 1] + "…"
