"""The walk of one model, step by step: every step is commands that a user types, and says what it measured.

A step is a function of the walk that returns bytes moved (or None) and what it found out. The table at the end is
made of nothing else than what this run measured.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError
from publisher.agents import LocalAgent, start_agent
from publisher.demo.shell import Shell, SteadyClient, count_right, score
from publisher.processes import terminate
from publisher.workspace import Workspace

DEVICE = "demo-device"
AGENT_CONFIG = "device/config.toml"
WAIT_S = 60


class DemoError(PublishError):
    """The demo did not see what it must see."""

    code = "demo"


@dataclass(frozen=True, slots=True)
class DemoAddresses:
    """Where the demo's hub and the device's own hub listen."""

    hub_host: str = "127.0.0.1"
    https_port: int = 8443
    registry_port: int = 5050
    edge_hub_host: str = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One row of the demo's table; `moved` says which bytes moved, empty when none did."""

    title: str
    seconds: float
    moved: str
    found: str
    commands: tuple[str, ...]


Outcome = tuple[str, str]
"""What moved, and what was found."""


class Walk:
    """The demo in a folder of its own; call `steps` in order, one after the other."""

    def __init__(self, folder: Path, addresses: DemoAddresses) -> None:
        self.folder = folder
        self._addresses = addresses
        self._shell = Shell(folder)
        self._agent: LocalAgent | None = None
        self._held_out: dict[str, Any] = {}
        self._accuracy: dict[str, float] = {}
        self._offset = 0

    @property
    def steps(self) -> tuple[tuple[str, Callable[[], Outcome]], ...]:
        """Title and function of every step."""
        return (
            ("train two models, register the first", self._register),
            ("build the scoring image, two platforms", self._build),
            ("start hub and registry, push the image", self._push),
            ("credentials and deployment manifest", self._manifest),
            ("create a device, apply the manifest", self._apply),
            ("start the device's agent, wait for it", self._start_agent),
            ("score over HTTP and by messages", self._score),
            ("pull the plug: no hub, agent killed", self._pull_the_plug),
            ("publish version 2, under requests", self._second_version),
            ("publish a broken version", self._broken_version),
        )

    def perform(self, title: str, step: Callable[[], Outcome]) -> StepResult:
        """Carry out one step and time it."""
        self._shell.typed = []
        started = time.monotonic()
        moved, found = step()
        return StepResult(title, time.monotonic() - started, moved, found, tuple(self._shell.typed))

    def _register(self) -> Outcome:
        for name in ("score.py", "broken.py", "requirements.txt"):
            shutil.copyfile(str(files("publisher.demo").joinpath("files", name)), self.folder / name)
        trained = self._shell.json("python -m publisher.demo.training")
        self._accuracy = trained["accuracy"]
        self._held_out = json.loads((self.folder / "held-out.json").read_text())
        (self.folder / "request.json").write_text(json.dumps({"data": self._held_out["data"]}))
        model = self._shell.json("edgewright model register model-1/digits.onnx --name digits --json")
        return (
            "",
            f"{model['id']}, {100 * self._accuracy['model-1']:.1f} % right on {trained['images']} images held out",
        )

    def _build(self) -> Outcome:
        image = self._shell.json(
            "edgewright image build -m digits:1 -s score.py --requirements requirements.txt --json"
        )
        layers = {layer["digest"]: layer["sizeBytes"] for layer in image["built"]}
        platforms = sorted({layer["platform"] for layer in image["built"]})
        return f"{_mb(sum(layers.values()))} built", f"{image['digest'][:19]}… for {' and '.join(platforms)}"

    def _push(self) -> Outcome:
        self._start_hub()
        pushed = self._shell.json("edgewright image push digits:1 --json")
        return f"{_mb(pushed['bytesSent'])} pushed", f"{pushed['blobsSent']} blobs, by digest"

    def _manifest(self) -> Outcome:
        self._shell.run("edgewright registry credentials --repository digits --json")
        self._shell.run("edgewright manifest generate digits=digits:1 --output-file manifest-1.json")
        checked = self._shell.json("edgewright manifest check manifest-1.json --json")
        return (
            "",
            f"{checked['desiredBytes']} of {checked['limitBytes']} bytes, {len(checked['findings'])} findings",
        )

    def _apply(self) -> Outcome:
        host = self._addresses.edge_hub_host
        other = "" if host == DemoAddresses().edge_hub_host else f" --edge-hub-host {host}"
        self._shell.run(f"edgewright device create {DEVICE} --agent-config device{other} --json")
        self._shell.run(f"edgewright manifest apply manifest-1.json --device {DEVICE}")
        return "", f"device {DEVICE} has a deployment to fetch"

    def _start_agent(self) -> Outcome:
        self._run_agent()
        shown = self._shell.json(f"edgewright device show {DEVICE} --wait {WAIT_S} --json")
        self._expect(shown["result"] == "succeeded", f"the first deployment ended {shown['result']}: {shown}")
        return f"{_mb(self._pulled_bytes())} pulled", f"{shown['result']}, sandbox: {shown['runtime']}"

    def _score(self) -> Outcome:
        uri = self._scoring_uri()
        self._shell.typed.append(f"curl -H 'Content-Type: application/json' -d @request.json {uri}")
        by_http = score(uri, self._held_out)
        by_message = self._score_by_message()
        self._expect(by_http == by_message, f"HTTP gave {by_http}, messages gave {by_message}")
        return "", f"{by_http}, the same by messages"

    def _pull_the_plug(self) -> Outcome:
        before = self._module()
        self._shell.run("edgewright hub stop")
        self._kill_agent()
        alone = score(before["scoringUri"], self._held_out)
        self._run_agent()
        after = self._wait_for_module()
        self._expect(after["pid"] == before["pid"], "the module was restarted with the agent")
        self._send_message()
        offline = score(after["scoringUri"], self._held_out)
        self._expect(alone == offline, "scores changed while the hub was away")
        self._start_hub()
        late = self._receive_message()
        return (
            "",
            f"{offline} without hub and agent; module untouched; a message sent offline arrived: {late}",
        )

    def _second_version(self) -> Outcome:
        self._shell.run("edgewright model register model-2/digits.onnx --name digits --json")
        image = self._shell.json(
            "edgewright image build -m digits:2 -s score.py --requirements requirements.txt --json"
        )
        new = sorted({layer["role"] for layer in image["built"] if not layer["reused"]})
        pushed = self._shell.json("edgewright image push digits:2 --json")
        before = self._pulled_bytes()
        with SteadyClient(self._scoring_uri(), self._held_out) as client:
            shown = self._deploy(2)
        self._expect(shown["result"] == "succeeded", f"version 2 ended {shown['result']}: {shown}")
        now = score(self._scoring_uri(), self._held_out)
        self._expect(
            now.right == round(self._accuracy["model-2"] * now.images), f"version 2 does not serve: {now}"
        )
        pulled = self._pulled_bytes() - before
        return (
            f"{_kb(pushed['bytesSent'])} pushed, {_kb(pulled)} pulled",
            f"{now}; new layers: {', '.join(new)}; {len(client.failed)} of {client.requests} requests failed meanwhile",
        )

    def _broken_version(self) -> Outcome:
        self._shell.run(
            "edgewright image build -m digits:2 -s broken.py --requirements requirements.txt --json"
        )
        self._shell.run("edgewright image push digits:3 --json")
        with SteadyClient(self._scoring_uri(), self._held_out) as client:
            shown = self._deploy(3, allowed=(1,))
        self._expect(shown["result"] == "failed-rolled-back", f"the broken version ended {shown['result']}")
        now = score(self._scoring_uri(), self._held_out)
        return (
            "",
            f"{shown['description']}; version 2 goes on: {now}; "
            f"{len(client.failed)} of {client.requests} requests failed meanwhile",
        )

    def _deploy(self, version: int, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        manifest = f"manifest-{version}.json"
        self._shell.run(f"edgewright manifest generate digits=digits:{version} --output-file {manifest}")
        line = f"edgewright manifest apply {manifest} --device {DEVICE} --wait {WAIT_S} --json"
        shown: dict[str, Any] = self._shell.json(line, allowed=allowed)
        return shown

    def _run_agent(self) -> None:
        self._shell.typed.append(f"edge-agent --config {AGENT_CONFIG} run &")
        config_file = self.folder / AGENT_CONFIG
        self._agent = start_agent(Workspace.open(self.folder), config_file, self.folder / "edge-agent.log")

    def _kill_agent(self) -> None:
        if self._agent is None:
            raise DemoError("no agent runs")
        self._shell.typed.append(f"kill -9 {self._agent.process.pid}")
        terminate(self._agent.process, timeout_s=10, stop_signal=signal.SIGKILL)

    def _start_hub(self) -> None:
        where = self._addresses
        options = (
            f" --host {where.hub_host} --https-port {where.https_port} --registry-port {where.registry_port}"
        )
        self._shell.run(f"edgewright hub start{'' if where == DemoAddresses() else options} --json")

    def _module(self) -> dict[str, Any]:
        rows = self._shell.json(f"edge-agent --config {AGENT_CONFIG} list --json", quiet=True)
        self._expect(len(rows) == 1, f"expected one module on the device, found {len(rows)}")
        row: dict[str, Any] = rows[0]
        return row

    def _wait_for_module(self) -> dict[str, Any]:
        """The module as the new agent lists it, once that has taken it over."""
        deadline = time.monotonic() + WAIT_S
        while self._agent_status()["running"] is False:
            self._expect(time.monotonic() < deadline, f"the agent did not start in {WAIT_S} s")
            time.sleep(0.2)
        return self._module()

    def _scoring_uri(self) -> str:
        return str(self._module()["scoringUri"])

    def _agent_status(self) -> dict[str, Any]:
        line = f"edge-agent --config {AGENT_CONFIG} status --json"
        status: dict[str, Any] = self._shell.json(line, allowed=(0, 1), quiet=True)
        return status

    def _pulled_bytes(self) -> int:
        return int(self._agent_status()["pulledBytes"])

    def _score_by_message(self) -> Any:
        self._send_message()
        return self._receive_message()

    def _send_message(self) -> None:
        self._shell.run(
            f"edge-agent --config {AGENT_CONFIG} messages send --content-type application/json request.json"
        )

    def _receive_message(self) -> Any:
        record = self._shell.json(
            f"edgewright hub monitor --device {DEVICE} --from {self._offset} --count 1 --timeout {WAIT_S} --json"
        )
        self._offset = record["offset"] + 1
        return count_right(record["body"], self._held_out)

    @staticmethod
    def _expect(truth: bool, otherwise: str) -> None:
        if not truth:
            raise DemoError(otherwise, next_command="edgewright status")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _kb(size_bytes: int) -> str:
    return f"{size_bytes / 1e3:.1f} kB"
