"""A release that does not fit on the device's disk, a real one: the old release keeps running, and the hub is told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentProcess, Publisher, answer
from hub_harness import HubProcess, wait_until

from edge_contracts.manifest import ModuleSettings

DEVICE = "edge-1"
DISK_BYTES = 16 * 2**20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    with HubProcess(tmp_path / "hub") as process:
        process.create_device(DEVICE, iot_edge=True)
        yield process


@pytest.fixture
def agent(hub: HubProcess) -> Iterator[AgentProcess]:
    """An agent whose state folder is a disk of its own, of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    process = AgentProcess(hub, DEVICE)
    process.state_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=711", "disk", str(process.state_dir)]
    if subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        process.close()
        pytest.skip("this machine does not let root mount")
    try:
        yield process
    finally:
        process.stop_all()
        subprocess.run(["umount", "--lazy", str(process.state_dir)], timeout=10, check=True)
        process.close()


def test_a_release_that_does_not_fit_leaves_the_old_one_running(
    hub: HubProcess, agent: AgentProcess, tmp_path: Path
) -> None:
    publisher = Publisher(hub, tmp_path, agent.python)
    agent.start()
    publisher.apply(DEVICE, ModuleSettings("scorer", publisher.push("1")))
    (scorer,) = wait_until(
        lambda: [row for row in agent.modules() if row["status"] == "running"], 30, "the first release"
    )
    assert answer(scorer["scoringUri"]) == "1"

    publisher.apply(DEVICE, ModuleSettings("scorer", publisher.push("2" * DISK_BYTES)))
    wanted = publisher.desired_version(DEVICE)

    def told() -> dict[str, object] | None:
        release = publisher.reported(DEVICE).get("edgewright", {}).get("release", {})
        full = release.get("errorClass") == "disk" and release.get("desiredVersion") == wanted
        return release if full else None

    release = wait_until(told, 30, "the device's word of a full disk")
    assert "bytes needed" in str(release["description"])
    assert publisher.reported(DEVICE)["lastDesiredStatus"]["code"] == 500
    (after,) = agent.modules()
    assert (after["pid"], after["status"]) == (scorer["pid"], "running")
    assert answer(scorer["scoringUri"]) == "1"

    # What fits is taken again: the disk was not left full.
    publisher.apply(DEVICE, ModuleSettings("scorer", publisher.push("3")))
    wait_until(lambda: answer(scorer["scoringUri"]) == "3", 30, "the release that fits")
