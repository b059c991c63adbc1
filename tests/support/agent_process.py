"""An edge agent in a process of its own, with its configuration and folders, for tests against a hub process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import runtime_images
from hub_harness import HubProcess, free_loopback_address, wait_until
from runtime_harness import find_python, version_of

from edge_containers.image_model import OCI_INDEX, Descriptor
from edge_containers.process_runtime import UNISOLATED, ProcessRuntime
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings, RegistryCredential
from edge_contracts.redact import Secret

STOP_TIMEOUT_S = 20.0


class AgentProcess:
    """`edge-agent run` for one device of a hub; `close` leaves no process behind."""

    def __init__(self, hub: HubProcess, device_id: str = "edge-1", ready_timeout_s: float = 10.0) -> None:
        self.hub = hub
        self.device_id = device_id
        # Not under pytest's folders, which a module's own user may not pass through.
        self.folder = Path(tempfile.mkdtemp(prefix="edgewright-agent-"))
        self.folder.chmod(0o711)
        self.edge_hub_host = free_loopback_address()
        python = find_python(UNISOLATED)
        assert python is not None, "no Python that modules may run under"
        self.python = python
        self._process: subprocess.Popen[str] | None = None
        self._write_config(ready_timeout_s)

    def _write_config(self, ready_timeout_s: float) -> None:
        secret = self.folder / "connection-string"
        secret.write_text(self.hub.device_connection_string(self.device_id))
        secret.chmod(0o600)
        (self.folder / "hub-ca.pem").write_bytes(self.hub.ca_file.read_bytes())
        (self.folder / "config.toml").write_text(
            f"""
[hub]
https_port = {self.hub.https_port}
ca_file = "hub-ca.pem"
[agent]
reconcile_interval_s = 1
ready_timeout_s = {ready_timeout_s}
[process]
python = "{self.python}"
allow_unisolated = true
[edge_hub]
host = "{self.edge_hub_host}"
"""
        )

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edge_agent", "--config", str(self.folder / "config.toml"), *arguments]

    def start(self) -> None:
        """Start and wait until it answers on its control socket."""
        with (self.folder / "agent.log").open("a") as log:
            self._process = subprocess.Popen(self.command("run"), stderr=log, text=True)
        wait_until(self._answers, 20, "the agent's control socket")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return self.cli("status", "--json").returncode == 0

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process = None
        return code

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60, check=False, **options
        )

    def modules(self) -> list[dict[str, Any]]:
        """`edge-agent list -o json`."""
        done = self.cli("list", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def close(self) -> None:
        self.stop_all()
        shutil.rmtree(self.folder)

    def stop_all(self) -> None:
        """End the agent and every module."""
        if self._process is not None:
            self.kill()
        if (self.state_dir / "runtime").is_dir():
            runtime = ProcessRuntime(self.state_dir / "runtime", self.python)
            for module in runtime.list():
                runtime.stop(module.name, module.instance_id, 0)
                runtime.remove(module.name, module.instance_id)


class Publisher:
    """Pushes small images to a hub's registry and applies manifests through Microsoft's SDK."""

    def __init__(self, hub: HubProcess, folder: Path, python: Path) -> None:
        self.hub = hub
        self._store = ContentStore(folder / "images")
        self._labels: dict[str, str | None] = {"edgewright.python": version_of(python)}
        status, answer = hub.request(
            "POST",
            "/edgewright/registry/credentials",
            {"repository": "digits", "actions": ["pull", "push"], "ttlSeconds": 3600},
        )
        assert status in (200, 201), answer
        self.address = str(answer["address"])
        self.credential = RegistryCredential(
            "digits", self.address, str(answer["username"]), Secret(str(answer["password"]))
        )

    def push(self, version: str) -> ImageRef:
        digest = runtime_images.put_image(self._store, version, labels=self._labels)
        basic = BasicCredentials(self.credential.username, self.credential.password)
        index = Descriptor(OCI_INDEX, digest, self._store.size(digest))
        with RegistryClient(self.address, credentials=basic) as client:
            client.push_image(self._store, index, "digits", None)
        return ImageRef(self.address, "digits", None, digest)

    def apply(self, device_id: str, *modules: ModuleSettings, **options: Any) -> None:
        manifest = DeploymentManifest.assemble(
            modules,
            options.get("routes", {"up": "FROM /messages/* INTO $upstream"}),
            [options.get("credential", self.credential)],
        )
        self.apply_document(device_id, manifest.dump())

    def apply_document(self, device_id: str, document: dict[str, Any]) -> None:
        from azure.iot.hub.models import ConfigurationContent

        content = ConfigurationContent(modules_content=document["modulesContent"])
        self.hub.configuration_manager().apply_configuration_on_edge_device(device_id, content)

    def reported(self, device_id: str) -> dict[str, Any]:
        twin = self.hub.registry_manager().get_module_twin(device_id, "$edgeAgent")
        return dict(twin.properties.reported)

    def desired_version(self, device_id: str) -> int:
        twin = self.hub.registry_manager().get_module_twin(device_id, "$edgeAgent")
        return int(twin.properties.desired["$version"])


def answer(uri: str) -> str | None:
    """What a GET on the host of `uri` answers; None when nobody does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(uri.removesuffix("/score"), timeout=5) as response:
            return str(response.read().decode())
    except (OSError, urllib.error.URLError):
        return None


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110


def unknown_digest() -> ImageDigest:
    return ImageDigest.of(b"no such image")
