"""Observe, plan, execute, report, again: the loop that makes the device what is desired of it.

Everything that blocks runs in threads with a limit; pulls run in the background, so that a crashed module restarts
while a large image is still coming. A round ends early after a step failed: the planner decides again on what is
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Callable
from random import Random

from edge_agent.background import in_thread
from edge_agent.backoff import RestartRecord, retry_delay_s
from edge_agent.executors import Hands, classify, execute, failure_key
from edge_agent.observe import Probe, Sight, goal_key, look, probe
from edge_agent.planner import (
    RECORD_STEPS,
    WAITING_STEPS,
    AwaitReady,
    BeginRelease,
    CommitRelease,
    Current,
    Health,
    Instance,
    MarkResult,
    RemoveInstance,
    RollBack,
    StartInstance,
    Step,
    StepFailure,
    SupersedeRelease,
    Wait,
    plan,
)
from edge_agent.release import Release
from edge_containers.runtime import ModuleStatus, RunningModule
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageRef

OBSERVE_TIMEOUT_S = 60.0
GARBAGE_TIMEOUT_S = 300.0
READY_POLL_S = 0.2
HEALTH_INTERVAL_S = 10.0
SETTLE_S = 2.0
"""After a module's process ended, the runtime is asked often for this long: it notices a moment later."""

CORRUPTION_TRIES = 2
MAX_ROUNDS = 200
"""Rounds without a pause; a plan that never empties would otherwise spin."""

log = logging.getLogger("edge_agent.reconcile")


class Reconciler:
    """The loop and what it remembers between rounds.

    Attributes:
        desired: the release asked for; None leaves the device as it is.
        current: the last observation.
        modules: the last observation as the runtime told it.
        keeps_garbage: whether images are left that no release needs yet, as while a bundle is read.
    """

    def __init__(
        self,
        hands: Hands,
        *,
        interval_s: float,
        ready_timeout_s: float,
        random: Random,
        changed: Callable[[], None],
        clock: Callable[[], float],
        probe: Probe = probe,
    ) -> None:
        self.hands = hands
        self.desired: Release | None = None
        self.current = Current(record=hands.record)
        self.modules: tuple[RunningModule, ...] = ()
        self.waiting: tuple[Step, ...] = ()
        self._interval_s = interval_s
        self._ready_timeout_s = ready_timeout_s
        self._random = random
        self._changed = changed
        self._clock = clock
        self._probe = probe
        self._wake = asyncio.Event()
        self._failures: dict[tuple[str, str], StepFailure] = {}
        self._restarts: dict[tuple[str, str], RestartRecord] = {}
        self._requests: set[str] = set()
        self._words: dict[tuple[str, str], str] = {}
        self._first_seen: dict[tuple[str, str], float] = {}
        self._health: dict[tuple[str, str], tuple[Health, float]] = {}
        self._watched: dict[int, int] = {}
        self._settle_until = 0.0
        self._garbage = False
        self.keeps_garbage = False

    def want(self, release: Release | None) -> None:
        """Set the desired release."""
        self.desired = release
        self._wake.set()

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    def request_restart(self, name: str) -> None:
        """Restart a module once, whatever its policy says."""
        self._requests.add(name)
        self._wake.set()

    def pull_ended(self, image: str, error: EdgewrightError | None) -> None:
        """What `Hands.pulled` calls."""
        if error is None:
            self._failures.pop(("pull", image), None)
            log.info("pulled %s", image)
        else:
            self._note_failure(("pull", image), error)
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        try:
            while True:
                try:
                    await self.settle()
                except (EdgewrightError, OSError, TimeoutError) as error:
                    log.error("reconcile: %s", str(error) or type(error).__name__)
                    self._changed()
                await self._pause()
        finally:
            self._watch(())

    async def settle(self) -> None:
        """Rounds until there is nothing to do but wait."""
        for _ in range(MAX_ROUNDS):
            if not await self.round():
                await self._collect_garbage()
                return
        log.error("the plan does not come to an end: %s", self.waiting)

    async def _collect_garbage(self) -> None:
        """Once after every release: remove images that neither it, nor the one before, needs; quicken the others."""
        if not self._garbage or self.hands.record.attempt is not None or self.hands.pulls:
            return
        if self.keeps_garbage:
            return
        self._garbage = False
        desired = {goal.image for goal in self.desired.modules} if self.desired else set()
        images = [*self.hands.keep_images(), *map(ImageRef.parse, sorted(desired))]
        freed = await in_thread(GARBAGE_TIMEOUT_S, self.hands.runtime.collect_garbage, images)
        if freed:
            log.info("removed images that no release needs: %d bytes", freed)
        await in_thread(GARBAGE_TIMEOUT_S, self.hands.runtime.prepare_quick_start, images)

    async def round(self) -> bool:
        """One observation and the steps it asks for; whether anything was done."""
        self._wake.clear()
        self.current = await self._observe()
        steps = plan(self.desired, self.current, self._clock())
        self.waiting = tuple(step for step in steps if isinstance(step, WAITING_STEPS))
        doing = [step for step in steps if not isinstance(step, WAITING_STEPS)]
        again = bool(doing)
        for step in doing:
            if not await self._done(step):
                # The planner waits for what it keeps count of; anything else is tried after the usual pause.
                again = failure_key(step) is not None
                break
        self._changed()
        return again

    async def _done(self, step: Step) -> bool:
        log.info("step %s", _named(step))
        try:
            await execute(self.hands, step)
        except (EdgewrightError, OSError, TimeoutError, ValueError, KeyError) as error:
            key = failure_key(step)
            if key is None and isinstance(step, RECORD_STEPS):
                raise
            self._note_failure(key or (type(step).__name__, getattr(step, "name", "")), error)
            return False
        self._after(step)
        return True

    def _after(self, step: Step) -> None:
        key = failure_key(step)
        if key is not None and key[0] != "pull":
            self._failures.pop(key, None)
        if isinstance(step, StartInstance):
            self._requests.discard(step.goal.name)
        if isinstance(step, RemoveInstance):
            self._forget((step.name, step.runtime_id))
        if isinstance(step, BeginRelease | SupersedeRelease):
            self._failures = {key: value for key, value in self._failures.items() if key[0] == "identity"}
        if isinstance(step, CommitRelease | MarkResult | RollBack):
            last = self.hands.record.last
            if self.hands.record.attempt is None and last is not None:
                self._garbage = True
                log.info(
                    "release %s version %d: %s %s",
                    last.digest,
                    last.number,
                    last.result.value,
                    last.description,
                )

    def _note_failure(self, key: tuple[str, str], error: BaseException) -> None:
        before = self._failures.get(key)
        count = (before.count if before else 0) + 1
        temporary = isinstance(error, TimeoutError) or bool(getattr(error, "temporary", False))
        delay = retry_delay_s(count - 1, self._random.random())
        if getattr(error, "code", "") == "digest-mismatch" and count < CORRUPTION_TRIES:
            # Bytes that arrived wrong are fetched once more before the image is blamed.
            temporary, delay = True, 1.0
        failure = classify(error)
        self._failures[key] = StepFailure(count, failure, temporary, self._clock() + delay)
        log.warning("%s %s failed (%s): %s", *key, failure.error_class.value, failure.description)

    async def _observe(self) -> Current:
        record, clock = self.hands.record, self._clock()
        releases = [record.committed, record.attempt.release if record.attempt else None]
        images = {goal.image for release in releases if release for goal in release.modules}
        sight = await in_thread(OBSERVE_TIMEOUT_S, look, self.hands.runtime, images, self._words)
        self.modules = sight.modules
        self._words |= sight.last_words
        self._watch(sight.modules)
        await self._probe_all(sight, clock)
        instances = tuple(self._instance(module, clock) for module in sight.modules)
        self._track_restarts(instances, clock)
        return Current(
            record=record,
            instances=instances,
            images=sight.images,
            pulling=frozenset(self.hands.pulls),
            identities=self.hands.identities.names(),
            workloads=frozenset(self.hands.workload_dirs),
            restarts=dict(self._restarts),
            restart_requests=frozenset(self._requests),
            failures=dict(self._failures),
            ready_timeout_s=self._ready_timeout_s,
        )

    async def _probe_all(self, sight: Sight, clock: float) -> None:
        due = [module for module in sight.modules if self._probe_due(module, clock)]
        for module, health in zip(due, await asyncio.gather(*map(self._probe, due)), strict=True):
            self._health[_start_key(module)] = (health, clock)

    def _probe_due(self, module: RunningModule, clock: float) -> bool:
        """A start is asked every time until it is ready, then now and then."""
        health, at = self._health.get(_start_key(module), (Health.UNKNOWN, -math.inf))
        running = module.status is ModuleStatus.RUNNING
        return running and (health is not Health.READY or clock >= at + HEALTH_INTERVAL_S)

    def _instance(self, module: RunningModule, clock: float) -> Instance:
        key = _start_key(module)
        return Instance(
            name=module.name,
            instance_id=goal_key(module)[1],
            runtime_id=module.instance_id,
            running=module.status is ModuleStatus.RUNNING,
            serving=module.serving,
            health=self._health.get(key, (Health.UNKNOWN, clock))[0],
            exit_code=module.exit_code,
            first_seen=self._first_seen.setdefault(key, clock),
            last_words=self._words.get(key, ""),
        )

    def _track_restarts(self, instances: tuple[Instance, ...], clock: float) -> None:
        for key in {instance.key for instance in instances}:
            starts = [instance for instance in instances if instance.key == key]
            record = self._restarts.get(key, RestartRecord())
            if any(instance.running for instance in starts):
                self._restarts[key] = record.seen_running(clock)
            elif key[0] not in self._requests:
                self._restarts[key] = record.seen_exited(clock, self._random.random())

    def _forget(self, key: tuple[str, str]) -> None:
        for memory in (self._words, self._first_seen, self._health):
            memory.pop(key, None)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._pause_s())

    def _pause_s(self) -> float:
        clock = self._clock()
        if clock < self._settle_until or any(isinstance(step, AwaitReady) for step in self.waiting):
            return READY_POLL_S
        times = [step.until - clock for step in self.waiting if isinstance(step, Wait)]
        return max(0.05, min([self._interval_s, *times]))

    def _watch(self, modules: tuple[RunningModule, ...]) -> None:
        """Wake the loop when a module's process ends, instead of polling for it."""
        loop = asyncio.get_running_loop()
        alive = {module.pid for module in modules if module.pid and module.status is ModuleStatus.RUNNING}
        for pid in set(self._watched) - alive:
            descriptor = self._watched.pop(pid)
            loop.remove_reader(descriptor)
            os.close(descriptor)
        for pid in alive - set(self._watched):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                self._watched[pid] = descriptor
                loop.add_reader(descriptor, self._process_ended, pid)

    def _process_ended(self, pid: int) -> None:
        descriptor = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._settle_until = self._clock() + SETTLE_S
        self._wake.set()


def _start_key(module: RunningModule) -> tuple[str, str]:
    return (module.name, module.instance_id)


def _named(step: Step) -> str:
    """A step in one line, without env or documents."""
    subject = getattr(step, "name", None) or getattr(step, "image", None) or getattr(step, "phase", None)
    goal = getattr(step, "goal", None)
    return f"{type(step).__name__} {subject or (goal.name if goal else '')}".strip()
