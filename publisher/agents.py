"""Edge agents that a workspace has started on this machine, so that `edgewright down` finds them again.

An agent leaves its modules running when it ends, on purpose; taking a device down for good means its modules, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_contracts.errors import PublishError
from publisher.processes import ProcessId, is_alive, process_id, terminate
from publisher.workspace import Workspace

STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """An agent started by this workspace; `config_file` is its `config.toml`."""

    process: ProcessId
    config_file: Path

    @property
    def is_running(self) -> bool:
        return is_alive(self.process)


def start_agent(workspace: Workspace, config_file: Path, log_file: Path) -> LocalAgent:
    """Start `edge-agent run` in the background; its log goes to `log_file`."""
    command = [sys.executable, "-m", "edge_agent", "--config", str(config_file), "run"]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    agent = LocalAgent(process_id(process.pid), config_file)
    record = _folder(workspace) / f"{process.pid}.json"
    record.write_text(json.dumps({"process": asdict(agent.process), "config": str(config_file)}))
    return agent


def local_agents(workspace: Workspace) -> list[LocalAgent]:
    """Every agent that was started, running or not."""
    agents = []
    for path in sorted(_folder(workspace).glob("*.json")):
        record = json.loads(path.read_text())
        agents.append(LocalAgent(ProcessId(**record["process"]), Path(record["config"])))
    return agents


def stop_device(workspace: Workspace, config_file: Path) -> int:
    """Stop the agents on this configuration, then its modules; returns how many modules were stopped.

    Raises:
        PublishError: an agent did not end in 20 s; its modules are left alone.
    """
    for path in sorted(_folder(workspace).glob("*.json")):
        record = json.loads(path.read_text())
        process = ProcessId(**record["process"])
        if Path(record["config"]) != config_file:
            continue
        if not terminate(process, timeout_s=STOP_TIMEOUT_S):
            raise PublishError(
                f"edge agent (process {process.pid}) did not end within {STOP_TIMEOUT_S:.0f} s",
                code="agent-stop",
            )
        path.unlink()
    return _stop_modules(config_file)


def _stop_modules(config_file: Path) -> int:
    from edge_containers.process_runtime import ProcessRuntime

    settings = tomllib.loads(config_file.read_text())
    state_dir = config_file.parent / settings.get("agent", {}).get("state_dir", "state")
    root = state_dir / "runtime"
    if not root.is_dir():
        return 0
    runtime = ProcessRuntime(root, Path(settings["process"]["python"]))
    modules = runtime.list()
    for module in modules:
        runtime.stop(module.name, module.instance_id, timeout_s=10)
        runtime.remove(module.name, module.instance_id)
    return len(modules)


def _folder(workspace: Workspace) -> Path:
    folder = workspace.run / "agents"
    folder.mkdir(exist_ok=True)
    return folder
