"""The planner and the release machine, explored together over a small world of instances and images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import release as transitions
from edge_agent.planner import (
    WAITING_STEPS,
    ActivateInstance,
    AdvanceRelease,
    AwaitReady,
    BeginRelease,
    CommitRelease,
    Current,
    EnsureIdentity,
    EnsureWorkload,
    Health,
    Instance,
    MarkResult,
    PullImage,
    RemoveIdentity,
    RemoveInstance,
    RollBack,
    StartInstance,
    Step,
    StepFailure,
    StopInstance,
    SupersedeRelease,
    plan,
)
from edge_agent.release import Failure, ModuleGoal, Phase, Release, ReleaseRecord
from edge_contracts.release import ErrorClass, ReleaseResult

LATE = 1_000_000.0


def goal(name: str, build: str, **options: object) -> ModuleGoal:
    return ModuleGoal(name, f"{name}{build}", f"image-{name}-{build}", **options)  # type: ignore[arg-type]


def release(digest: str, number: int, *goals: ModuleGoal) -> Release:
    return Release(digest, number, goals)


ONE = release("one", 1, goal("a", "1"), goal("b", "1"))
TWO = release("two", 2, goal("a", "2"), goal("b", "1"))
THREE = release("three", 3, goal("a", "3"))


@dataclass(frozen=True)
class World:
    """The device in small: everything hashable, so that visited states are recognised."""

    record: ReleaseRecord
    instances: frozenset[Instance] = frozenset()
    images: frozenset[str] = frozenset()
    identities: frozenset[str] = frozenset()
    workloads: frozenset[str] = frozenset()
    failures: frozenset[tuple[tuple[str, str], StepFailure]] = frozenset()
    desired: Release | None = None
    faults: int = 0

    def current(self) -> Current:
        ordered = tuple(sorted(self.instances, key=lambda instance: (instance.runtime_id, instance.name)))
        return Current(
            record=self.record,
            instances=ordered,
            images=self.images,
            identities=self.identities,
            workloads=self.workloads,
            failures=dict(self.failures),
        )


def done(world: World, step: Step) -> World:
    """The world after a step succeeded."""
    match step:
        case BeginRelease(release=wanted):
            return replace(world, record=transitions.begin(world.record, wanted), failures=frozenset())
        case AdvanceRelease(phase=phase):
            return replace(world, record=transitions.advance(world.record, phase))
        case CommitRelease():
            return replace(world, record=transitions.commit(world.record))
        case SupersedeRelease(newer=newer):
            return replace(world, record=transitions.supersede(world.record, newer), failures=frozenset())
        case RollBack(failure=failure):
            return replace(world, record=transitions.fail(world.record, failure))
        case MarkResult(result=result, release=wanted):
            mark = {
                "settled": lambda: transitions.settle(world.record, wanted),
                "rejected": lambda: transitions.reject(world.record, wanted),
                "rolled-back": lambda: transitions.rolled_back(world.record),
                "stuck": lambda: transitions.stuck(world.record),
            }[result]
            return replace(world, record=mark())
        case PullImage(image=image):
            return replace(world, images=world.images | {image})
        case EnsureIdentity(name=name):
            return replace(world, identities=world.identities | {name})
        case RemoveIdentity(name=name):
            return replace(world, identities=world.identities - {name}, workloads=world.workloads - {name})
        case EnsureWorkload(name=name):
            return replace(world, workloads=world.workloads | {name})
        case StartInstance(goal=wanted, hold=hold):
            count = sum(instance.key == wanted.key for instance in world.instances)
            started = Instance(
                wanted.name,
                wanted.instance_id,
                f"{wanted.instance_id}-{count}",
                serving=not hold,
                health=Health.NOT_READY,
            )
            return replace(world, instances=world.instances | {started})
        case AwaitReady(runtime_id=runtime_id):
            return changed(world, runtime_id, health=Health.READY)
        case ActivateInstance(runtime_id=runtime_id):
            return changed(world, runtime_id, serving=True)
        case StopInstance(runtime_id=runtime_id):
            return changed(world, runtime_id, running=False, serving=False, exit_code=0)
        case RemoveInstance(runtime_id=runtime_id):
            kept = frozenset(i for i in world.instances if i.runtime_id != runtime_id or i.running)
            return replace(world, instances=kept)
    return world


def changed(world: World, runtime_id: str, **changes: object) -> World:
    return replace(
        world,
        instances=frozenset(
            replace(i, **changes) if i.runtime_id == runtime_id else i  # type: ignore[arg-type]
            for i in world.instances
        ),
    )


def failed(world: World, step: Step) -> Iterator[World]:
    """The worlds after a step failed, in each of its ways."""
    crash = Failure(ErrorClass.CRASH, "it died")
    match step:
        case PullImage(image=image):
            broken = StepFailure(1, Failure(ErrorClass.NOT_FOUND, "no such image"), False, LATE)
            yield replace(world, failures=world.failures | {(("pull", image), broken)})
        case StartInstance(goal=wanted, hold=True):
            broken = StepFailure(1, crash, False, 0.0)
            yield replace(world, failures=world.failures | {(("start", wanted.instance_id), broken)})
        case AwaitReady(runtime_id=runtime_id):
            yield changed(world, runtime_id, running=False, serving=False, exit_code=3)
            yield changed(world, runtime_id, first_seen=-LATE)
        case ActivateInstance(runtime_id=runtime_id):
            yield changed(world, runtime_id, running=False, serving=False, exit_code=1)


def first(world: World, clock: float = 1.0) -> tuple[Step, ...]:
    return plan(world.desired, world.current(), clock)


def settled(world: World, limit: int = 200) -> World:
    """The world after everything succeeded until nothing is left to do."""
    for _ in range(limit):
        steps = first(world)
        if not steps:
            return world
        for step in steps:
            world = done(world, step)
    raise AssertionError(f"no end: {steps}")


def running(world: World) -> set[tuple[str, str]]:
    return {instance.key for instance in world.instances if instance.running and instance.serving}


def on(release_: Release) -> World:
    return settled(World(ReleaseRecord(), desired=release_))


def test_a_first_release_is_pulled_started_and_committed() -> None:
    world = on(ONE)
    assert world.record.committed == ONE
    assert running(world) == {("a", "a1"), ("b", "b1")}
    assert world.record.last is not None
    assert world.record.last.result is ReleaseResult.SUCCEEDED


def test_planning_again_for_the_same_release_is_empty() -> None:
    assert first(on(ONE)) == ()


def test_what_two_releases_share_is_left_alone() -> None:
    before = on(ONE)
    world = replace(before, desired=TWO)
    stopped: set[str] = set()
    while steps := first(world):
        stopped |= {step.name for step in steps if isinstance(step, StopInstance)}
        for step in steps:
            world = done(world, step)
    assert stopped == {"a"}
    assert running(world) == {("a", "a2"), ("b", "b1")}


def test_the_old_instance_serves_until_the_new_one_is_ready_and_serving() -> None:
    world = replace(on(ONE), desired=TWO)
    while steps := first(world):
        for step in steps:
            if isinstance(step, StopInstance):
                assert ("a", "a2") in running(world)
            world = done(world, step)
            assert {name for name, _ in running(world)} == {"a", "b"}


def test_an_exhaustive_walk_keeps_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """From release one: every order of success, and of up to two faults, newer desires or power cuts, to the end."""
    start = replace(on(ONE), desired=TWO, faults=0)
    seen, queue = {start}, deque([(start, 0)])
    transitions_seen = depth = 0
    while queue:
        world, level = queue.popleft()
        check_promises(world)
        depth = max(depth, level)
        for following in successors(world):
            transitions_seen += 1
            assert_one_result_each(world.record, following.record)
            if following not in seen:
                seen.add(following)
                queue.append((following, level + 1))
    with capsys.disabled():
        print(f"\nexplored {len(seen)} states and {transitions_seen} transitions, depth {depth}")
    for world in seen:
        assert_recovers(world)


def successors(world: World) -> Iterator[World]:
    """What may happen next: each first step done or failed, a newer desire, power lost; two faults at most."""
    steps = first(world)
    for step in steps[:2]:
        yield done(world, step)
    if world.faults >= 2:
        return
    spent = replace(world, faults=world.faults + 1)
    for step in steps[:2]:
        yield from failed(spent, step)
    if world.desired == TWO:
        yield replace(spent, desired=THREE)
        yield replace(spent, desired=replace(ONE, number=3))
        yield replace(spent, desired=replace(TWO, number=3))
    yield replace(spent, instances=frozenset(), workloads=frozenset(), failures=frozenset())


def check_promises(world: World) -> None:
    """Promises 1 and 5: what is kept running is a whole release whose images are on the disk."""
    committed = world.record.committed
    assert committed is not None
    assert {goal.image for goal in committed.modules} <= world.images
    attempt = world.record.attempt
    if attempt is not None and attempt.phase in (Phase.STARTING, Phase.SWITCHING):
        assert {goal.image for goal in attempt.release.modules} <= world.images
    wanted = {goal.key for goal in committed.modules}
    wanted |= {goal.key for goal in attempt.release.modules} if attempt else set()
    for step in first(world):
        if isinstance(step, StartInstance):
            assert step.goal.key in wanted


def assert_one_result_each(before: ReleaseRecord, after: ReleaseRecord) -> None:
    """Promise 2."""
    added = after.results[len(before.results) :]
    assert after.results[: len(before.results)] == before.results
    assert len(added) <= 1
    keys = [terminal.key for terminal in after.results]
    assert len(keys) == len(set(keys)), keys


def assert_recovers(world: World) -> None:
    """Promises 4 and 6: with nothing going wrong any more, the newest desired release ends in one result."""
    end = settled(replace(world, failures=frozenset()))
    assert end.record.attempt is None
    assert end.record.last is not None
    assert end.desired is not None
    assert end.record.last.key == end.desired.key
    committed = end.record.committed
    assert committed is not None
    assert running(end) == {goal.key for goal in committed.running}


def test_a_release_that_failed_is_not_tried_again() -> None:
    world = replace(on(ONE), desired=TWO)
    while not any(isinstance(step, AwaitReady) for step in first(world)):
        world = done(world, first(world)[0])
    step = next(step for step in first(world) if isinstance(step, AwaitReady))
    world = settled(next(failed(world, step)))
    assert world.record.last is not None
    assert world.record.last.result is ReleaseResult.FAILED_ROLLED_BACK
    assert running(world) == {("a", "a1"), ("b", "b1")}
    again = settled(replace(world, desired=replace(TWO, number=9)))
    assert again.record.last is not None
    assert again.record.last.result is ReleaseResult.REJECTED
    assert again.record.committed == ONE


def test_a_failed_pull_changes_nothing_and_a_new_version_lifts_it() -> None:
    world = replace(on(ONE), desired=TWO)
    while not any(isinstance(step, PullImage) for step in first(world)):
        world = done(world, first(world)[0])
    world = settled(next(failed(world, first(world)[0])))
    assert world.record.last is not None
    assert world.record.last.result is ReleaseResult.FAILED_NO_CHANGE
    again = settled(replace(world, desired=replace(TWO, number=9), failures=frozenset()))
    assert again.record.committed == replace(TWO, number=9)


def test_a_temporary_pull_failure_waits_and_keeps_the_attempt() -> None:
    world = replace(on(ONE), desired=TWO)
    world = done(world, first(world)[0])
    failure = StepFailure(1, Failure(ErrorClass.NETWORK, "no route"), True, 50.0)
    current = replace(world.current(), failures={("pull", "image-a-2"): failure})
    steps = plan(TWO, current, 1.0)
    assert all(isinstance(step, WAITING_STEPS) for step in steps)
    assert any(isinstance(step, PullImage) for step in plan(TWO, current, 51.0))


def test_without_desired_properties_the_committed_release_runs_on() -> None:
    world = on(ONE)
    rebooted = replace(world, instances=frozenset(), workloads=frozenset(), desired=None)
    assert running(settled(rebooted)) == {("a", "a1"), ("b", "b1")}


def test_a_module_desired_stopped_is_pulled_but_not_started() -> None:
    wanted = release("stopped", 1, goal("a", "1", running=False))
    world = on(wanted)
    assert world.images == {"image-a-1"}
    assert not running(world)
    assert first(world) == ()


NAMES = st.sampled_from(["a", "b", "c"])
GOALS = st.builds(
    lambda name, build, is_running, policy, order: goal(
        name, build, running=is_running, restart_policy=policy, startup_order=order
    ),
    NAMES,
    st.sampled_from(["1", "2"]),
    st.booleans(),
    st.sampled_from(["always", "on-failure", "never", "on-unhealthy"]),
    st.integers(0, 3),
)
RELEASES = st.lists(GOALS, max_size=3, unique_by=lambda item: item.name)


@settings(max_examples=150, deadline=None)
@given(st.lists(RELEASES, min_size=1, max_size=4))
def test_any_sequence_of_releases_ends_with_an_empty_plan(sequence: list[list[ModuleGoal]]) -> None:
    world = World(ReleaseRecord())
    for number, goals in enumerate(sequence, start=1):
        wanted = Release(repr(sorted(goals, key=lambda item: item.name)), number, tuple(goals))
        world = settled(replace(world, desired=wanted))
        assert first(world) == ()
        assert running(world) == {item.key for item in goals if item.running}
        assert world.identities == {item.name for item in goals if item.running} | (
            world.identities & {item.name for item in goals}
        )
        assert world.record.last is not None
        assert world.record.last.key == wanted.key
        assert world.record.last.result is ReleaseResult.SUCCEEDED
