"""What every module runtime promises (`edge_containers.runtime.ModuleRuntime`), for each implementation and tier."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import runtime_harness
from runtime_harness import Hammer, RuntimeHarness, get, is_running, run_inside, try_get, until

from edge_containers import sandbox
from edge_containers.runtime import (
    ImageNotPreparedError,
    ModuleControlError,
    ModuleSpec,
    ModuleStartError,
    ModuleStatus,
    NoSuchInstanceError,
    RunningModule,
)
from edge_contracts.image_ref import ImageDigest, ImageRef


@pytest.fixture(scope="module", params=[f"process-{tier}" for tier in runtime_harness.TIERS])
def implementation(request: pytest.FixtureRequest) -> Iterator[RuntimeHarness]:
    harness = runtime_harness.open_harness(request.param.removeprefix("process-"))
    yield harness
    harness.close()


@pytest.fixture
def harness(implementation: RuntimeHarness) -> Iterator[RuntimeHarness]:
    yield implementation
    implementation.reset()


def test_a_module_is_started_scored_listed_stopped_and_removed(harness: RuntimeHarness) -> None:
    module = harness.start(env={"GREETING": "hello"})
    assert module.status is ModuleStatus.RUNNING
    assert module.serving
    assert get(module.public_address) == "1"
    assert run_inside(module, "import os; result = os.environ['GREETING']") == "hello"
    assert harness.runtime.list() == [module]
    assert harness.runtime.stats("scorer", "i1").processes == 1
    assert 1 << 20 < harness.runtime.stats("scorer", "i1").memory_bytes < 100 << 20

    stopped = harness.runtime.stop("scorer", "i1")

    assert (stopped.status, stopped.exit_code, stopped.pid) == (ModuleStatus.EXITED, 0, None)
    assert stopped.finished_at >= stopped.started_at
    assert harness.runtime.logs("scorer") == "module 1 starts\nmodule 1 ends\n"
    assert harness.runtime.logs("scorer", tail=1) == "module 1 ends\n"
    assert harness.runtime.logs("scorer", tail=0) == ""
    assert harness.runtime.stop("scorer", "i1") == stopped
    harness.runtime.remove("scorer", "i1")
    harness.runtime.remove("scorer", "i1")
    assert harness.runtime.list() == []
    assert harness.runtime.stop("scorer", "i1") is None


def test_a_held_module_takes_no_traffic_before_it_is_activated(harness: RuntimeHarness) -> None:
    module = harness.start(hold=True)
    assert not module.serving
    assert get(module.health_address) == "1"
    with pytest.raises(OSError, match="timed out"):
        get(module.public_address, timeout_s=0.2)

    harness.runtime.activate("scorer", "i1")
    harness.runtime.activate("scorer", "i1")

    assert until(lambda: try_get(module.public_address), "it serves") == "1"
    assert harness.now(module).serving


def test_switching_versions_fails_no_request(harness: RuntimeHarness) -> None:
    old = harness.start("1")
    with Hammer(old.public_address) as hammer:
        new = harness.start("2", hold=True)
        assert new.public_address == old.public_address
        assert "2" not in hammer.answers
        harness.runtime.activate("scorer", new.instance_id)
        until(lambda: "2" in hammer.answers, "the new version answers")
        assert harness.runtime.stop("scorer", old.instance_id).exit_code == 0
        count = len(hammer.answers)
        until(lambda: len(hammer.answers) > count + 50, "the new version goes on answering")
    assert hammer.failures == []
    assert set(hammer.answers[count + 1 :]) == {"2"}


def test_the_public_address_outlives_a_restart(harness: RuntimeHarness) -> None:
    first = harness.start()
    harness.runtime.remove("scorer", first.instance_id)
    harness.runtime = harness.open()
    assert harness.start().public_address == first.public_address
    assert harness.start(name="other").public_address != first.public_address


def test_a_module_outlives_the_process_that_started_it(harness: RuntimeHarness) -> None:
    program = f"""
        import sys, time
        sys.path[:0] = [{str(runtime_harness.SUPPORT)!r}, {str(runtime_harness.PROJECT)!r}]
        from pathlib import Path
        from edge_containers.process_runtime import ProcessRuntime
        from edge_containers.runtime import ModuleSpec
        from edge_contracts.image_ref import ImageRef
        runtime = ProcessRuntime(
            Path({str(harness.root)!r}), Path({str(harness.python)!r}), tiers=[{harness.tier!r}], allow_unisolated=True
        )
        runtime.start(ModuleSpec("scorer", ImageRef.parse({str(harness.image())!r}), "i1"), hold=True)
        print("started", flush=True)
        time.sleep(60)
    """
    agent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    with agent:
        assert agent.stdout.readline() == b"started\n"
        agent.kill()
    assert agent.returncode == -signal.SIGKILL

    (module,) = harness.open().list()

    assert module.status is ModuleStatus.RUNNING
    until(lambda: try_get(module.health_address), "it is still there")
    harness.open().activate("scorer", "i1")
    assert until(lambda: try_get(module.public_address), "it serves") == "1"
    assert harness.open().stop("scorer", "i1").exit_code == 0


def test_a_crash_is_seen_with_its_exit_code(harness: RuntimeHarness) -> None:
    module = harness.exited(harness.start("crash"))
    assert (module.exit_code, module.reason) == (3, None)
    assert harness.runtime.logs("scorer") == "module crash starts\n"
    with pytest.raises(NoSuchInstanceError, match="it has exited"):
        harness.runtime.activate("scorer", module.instance_id)


def test_a_module_killed_by_a_signal_has_its_number_in_the_exit_code(harness: RuntimeHarness) -> None:
    module = harness.start()
    os.kill(module.pid, signal.SIGKILL)
    assert harness.exited(module).exit_code == 128 + signal.SIGKILL


def test_a_module_deaf_to_sigterm_is_killed_when_its_time_is_up(harness: RuntimeHarness) -> None:
    harness.start("deaf")
    stopped = harness.runtime.stop("scorer", "i1", timeout_s=0.2)
    assert stopped.exit_code == 128 + signal.SIGKILL


FAMILY = """
import os, time
child = os.fork()
if child == 0:
    os.setsid()
    grandchild = os.fork()
    time.sleep(60)
result = child
"""


def test_the_whole_tree_is_gone_after_a_stop(harness: RuntimeHarness) -> None:
    module = harness.start()
    run_inside(module, FAMILY)
    tree = until(lambda: len(found := family(module)) == 3 and found, "the family is there")
    assert harness.runtime.stats("scorer", "i1").processes == 3
    harness.runtime.stop("scorer", "i1")
    assert not any(map(is_running, tree))


def test_the_whole_tree_is_gone_after_a_crash(harness: RuntimeHarness) -> None:
    module = harness.start()
    run_inside(module, FAMILY)
    tree = until(lambda: len(found := family(module)) == 3 and found, "the family is there")
    os.kill(module.pid, signal.SIGSEGV)
    assert harness.exited(module).exit_code == 128 + signal.SIGSEGV
    assert not any(map(is_running, tree))


def family(module: RunningModule) -> list[int]:
    assert module.pid is not None
    return [module.pid, *sandbox.descendants(module.pid)]


def test_an_image_must_be_there_before_it_is_started(harness: RuntimeHarness) -> None:
    unknown = ImageRef("127.0.0.1:5050", "digits", None, ImageDigest.of(b""))
    assert not harness.runtime.has_image(unknown)
    with pytest.raises(ImageNotPreparedError, match="has not been pulled"):
        harness.runtime.start(ModuleSpec("scorer", unknown, "i1"))
    assert harness.runtime.list() == []
    with pytest.raises(ImageNotPreparedError, match="must be given by digest"):
        harness.runtime.has_image(ImageRef("127.0.0.1:5050", "digits", "1"))


def test_an_instance_id_is_used_once(harness: RuntimeHarness) -> None:
    module = harness.start()
    with pytest.raises(ModuleStartError, match="'scorer' has an instance i1 already"):
        harness.runtime.start(ModuleSpec("scorer", harness.image(), "i1"))
    assert harness.now(module) == module


def test_activating_a_module_that_is_not_ready_says_so_and_leaves_it_running(harness: RuntimeHarness) -> None:
    slow = "import time\ntime.sleep(60)\n"
    image = harness.image_of(slow)
    module = harness.runtime.start(ModuleSpec("scorer", image, "i1"), hold=True)
    with pytest.raises(ModuleControlError, match="does not handle SIGUSR1"):
        harness.runtime.activate("scorer", "i1")
    assert harness.now(module).status is ModuleStatus.RUNNING
    assert not harness.now(module).serving


def test_garbage_is_what_nobody_runs_and_nobody_wants(harness: RuntimeHarness) -> None:
    running, kept, unwanted = (harness.image(version) for version in "123")
    harness.start("1", image=running)

    assert harness.runtime.collect_garbage([kept]) > 0

    assert [harness.runtime.has_image(each) for each in (running, kept, unwanted)] == [True, True, False]
    assert harness.runtime.collect_garbage([kept]) == 0
    harness.start("2", image=kept)
