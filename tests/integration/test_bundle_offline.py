"""From a model to scores on a device that reaches no hub, no registry and no index: by one file."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess
from hub_harness import HubProcess, wait_until
from runtime_harness import version_of
from typer.testing import CliRunner

from edge_contracts.manifest import DeploymentManifest
from publisher.cli.main import app

DEVICE = "edge-1"
SCORE = "import json\n\n\ndef init():\n    pass\n\n\ndef run(data):\n    return {'sum': sum(json.loads(data)['data'])}\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    with HubProcess(tmp_path / "hub") as process:
        process.create_device(DEVICE, iot_edge=True)
        yield process


@pytest.fixture
def agent(hub: HubProcess) -> Iterator[AgentProcess]:
    process = AgentProcess(hub, DEVICE)
    yield process
    process.close()


def edgewright(folder: Path, *words: str) -> str:
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def bundle(tmp_path: Path, agent: AgentProcess) -> Path:
    """Made from an image that was never pushed."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    edgewright(folder, "init", ".")
    settings = folder / "edgewright.toml"
    settings.write_text(_with_python(settings.read_text(), version_of(agent.python)))
    (folder / "model.pkl").write_bytes(b"weights")
    (folder / "score.py").write_text(SCORE)
    edgewright(folder, "model", "register", "model.pkl", "--name", "adder")
    edgewright(folder, "image", "build", "-m", "adder:1", "-s", "score.py", "--platform", "linux/amd64")
    edgewright(folder, "manifest", "generate", "adder:1", "--unpushed", "--output-file", "m.json")
    made = json.loads(edgewright(folder, "bundle", "create", "m.json", "-o", "adder.tar", "--json"))
    assert made["platform"] == "linux/amd64"
    assert (folder / "adder.tar").stat().st_mode & 0o777 == 0o600
    first = (folder / "adder.tar").read_bytes()
    edgewright(folder, "bundle", "create", "m.json", "-o", "adder.tar")
    assert (folder / "adder.tar").read_bytes() == first
    return folder / "adder.tar"


def _with_python(text: str, version: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("python =")]
    at = lines.index("[environment]") + 1
    return "\n".join([*lines[:at], f'python = "{version}"', *lines[at:]]) + "\n"


def score(uri: str, document: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(uri, json.dumps(document).encode(), headers)  # noqa: S310 - of a test's module
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        return json.loads(response.read())


def running(agent: AgentProcess) -> dict[str, Any]:
    """The one module, once its release is committed: before that it is held."""

    def found() -> dict[str, Any] | None:
        status = json.loads(agent.cli("status", "--json").stdout)
        row = next((row for row in agent.modules() if row["status"] == "running"), None)
        return row if status["release"]["committed"] and not status["release"]["attempt"] else None

    try:
        return dict(wait_until(found, 30, "a module that runs"))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{agent.log}") from error


def test_bundle_scores_without_hub_and_registry(hub: HubProcess, agent: AgentProcess, bundle: Path) -> None:
    assert hub.stop() == 0
    shutil.copy(bundle, agent.folder / "stick.tar")

    # While no agent runs: checked and unpacked at once, started with the agent.
    cut = agent.folder / "cut.tar"
    cut.write_bytes(bundle.read_bytes()[: bundle.stat().st_size // 2])
    refused = agent.cli("apply", str(cut))
    assert refused.returncode == 1
    assert "was not copied whole" in refused.stderr
    taken = agent.cli("apply", str(agent.folder / "stick.tar"))
    assert taken.returncode == 0, taken.stderr
    assert "the agent runs it when it starts" in taken.stdout
    (agent.folder / "stick.tar").unlink()
    agent.start()
    module = running(agent)
    assert score(module["scoringUri"], {"data": [1, 2, 39]}) == {"sum": 42}

    # While it runs: the same release settles, a broken file changes nothing.
    again = agent.cli("apply", str(bundle))
    assert (again.returncode, "succeeded" in again.stdout) == (0, True), again
    assert agent.cli("apply", str(cut)).returncode == 1
    assert running(agent)["pid"] == module["pid"]
    assert score(module["scoringUri"], {"data": [1]}) == {"sum": 1}

    # Back online: the hub desires nothing, so it stays, and the hub is told what runs.
    hub.start()
    reported = wait_until(lambda: local_release(hub), 30, "the local release at the hub")
    assert reported["source"] == "adder.tar"
    assert reported["active"]
    # Then it does, and its desired state wins.
    content = DeploymentManifest.assemble((), {"up": "FROM /messages/* INTO $upstream"}).dump()
    hub.configuration_manager().apply_configuration_on_edge_device(DEVICE, configuration(content))
    wait_until(lambda: agent.modules() == [], 30, "the hub's desired state")
    wait_until(lambda: not local_release(hub)["active"], 30, "the report of it")


def configuration(document: dict[str, Any]) -> Any:
    from azure.iot.hub.models import ConfigurationContent

    return ConfigurationContent(modules_content=document["modulesContent"])


def local_release(hub: HubProcess) -> dict[str, Any]:
    twin = hub.registry_manager().get_module_twin(DEVICE, "$edgeAgent")
    return dict((twin.properties.reported.get("edgewright") or {}).get("localRelease") or {})


def test_skopeo_reads_the_images_of_a_bundle(bundle: Path) -> None:
    skopeo = shutil.which("skopeo")
    assert skopeo is not None, "scripts/test-tools names it"
    done = subprocess.run(
        [skopeo, "inspect", "--override-os", "linux", "--override-arch", "amd64", f"oci-archive:{bundle}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["Architecture"] == "amd64"
