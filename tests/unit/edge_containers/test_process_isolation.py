"""What a module can and cannot do in each isolating tier, started by root and by a user without rights."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runtime_harness
import urllib3

NOBODY = runtime_harness.NOBODY
DENIED = {
    "Permission denied",
    "Operation not permitted",
    "No such file or directory",
    "Read-only file system",
}
WHO = ("caller", "nobody") if os.geteuid() == 0 else ("caller",)
CASES = [(tier, who) for tier in ("namespaces", "landlock") for who in WHO]


@functools.cache
def _look_around(tier: str, who: str) -> dict[str, Any] | str:
    """What the module found, or why it could not be asked."""
    user: dict[str, Any] = {}
    agent = Path(sys.executable)
    if who == "nobody":
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        found = runtime_harness.find_python("landlock")
        if found is None or runtime_harness.version_of(found) < "3.11":
            return f"no interpreter from 3.11 on that uid {NOBODY} may start"
        agent = found
    python = agent if who == "nobody" else runtime_harness.find_python(tier)
    if python is None:
        return f"no interpreter that uid {NOBODY} may start"
    packages = [str(runtime_harness.PROJECT), str(Path(urllib3.__file__).parent.parent)]
    run = subprocess.run(
        [str(agent), str(runtime_harness.SUPPORT / "runtime_inspect.py"), tier, str(python)],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **user,
    )
    if who == "nobody" and "Permission denied" in run.stderr and "edge_containers" not in run.stderr:
        return f"uid {NOBODY} cannot read this checkout"
    if "SandboxUnavailableError" in run.stderr:
        return run.stderr.splitlines()[-1]
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(params=CASES, ids="-as-".join)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = _look_around(*request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return {"tier": request.param[0], **found}


def test_a_module_is_nobody_without_capabilities(found: dict[str, Any]) -> None:
    # Landlock has no other user to offer to a caller who is not root: the module is the caller, without more rights.
    stays = found["tier"] == "landlock" and os.geteuid() != 0
    assert found["ids"] == [os.geteuid() if stays else NOBODY] * 4
    if not stays:
        assert set(found["groups"]) <= {NOBODY}
    status = found["status"]
    assert {
        name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")
    } == dict.fromkeys(("CapEff", "CapPrm", "CapInh", "CapAmb"), 0)
    assert status["NoNewPrivs"] == "1"


def test_a_module_can_never_gain_a_capability(found: dict[str, Any]) -> None:
    if found["tier"] == "namespaces":
        assert int(found["status"]["CapBnd"], 16) == 0
    # "Invalid argument": the user namespace has no user 0.
    assert set(found["hostile"].values()) <= {*DENIED, "Invalid argument"}


def test_a_module_reads_nothing_of_the_agent_or_the_machine(found: dict[str, Any]) -> None:
    readable = {path for path, outcome in found["reads"].items() if outcome == "done"}
    assert readable == set()
    assert set(found["reads"].values()) <= DENIED


def test_a_module_writes_to_its_temporary_folder_alone(found: dict[str, Any]) -> None:
    writable = {path for path, outcome in found["writes"].items() if outcome == "done"}
    assert writable == set()
    assert found["writes to its own"] == "done"


def test_a_module_reaches_its_workload_socket(found: dict[str, Any]) -> None:
    isolated = found["tier"] == "namespaces"
    folder = "/run/edgewright" if isolated else found["workload dir"]
    assert (found["workload path"], found["workload answer"]) == (f"{folder}/w.sock", "signed")


def test_a_module_cannot_signal_the_agent(found: dict[str, Any]) -> None:
    assert found["kill"] in {"No such process", "Operation not permitted"}


def test_a_module_sees_only_its_own_processes_in_namespaces(found: dict[str, Any]) -> None:
    if found["tier"] == "namespaces":
        assert found["processes"] == [1, 2]
        assert found["semaphore"] == "done"


def test_a_module_is_limited(found: dict[str, Any]) -> None:
    assert found["open files"] <= 1024
    assert found["core"] == [0, 0]
    assert found["out of memory first"] == 500


ROOT_ALONE = """
import sys
from pathlib import Path
from edge_containers.process_runtime import ProcessRuntime
for kind in ("user", "mnt", "pid"):
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")
report = ProcessRuntime(Path(sys.argv[1]), Path(sys.argv[2])).report()
print(report.tier, report.reason)
"""


def test_root_of_a_container_that_knows_no_other_user_still_has_a_tier(tmp_path: Path) -> None:
    """As in a rootless container that is refused namespaces: uid 0 is the only one there, so nobody cannot be become."""
    python = runtime_harness.find_python("landlock")
    if python is None:
        pytest.skip("no Python that modules may run under")
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", ROOT_ALONE]
    done = subprocess.run(
        [*command, str(tmp_path / "runtime"), str(python)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("this machine makes no user namespaces")
    assert done.stdout.startswith("landlock namespaces: "), done.stdout + done.stderr
