"""Edge agents of a workspace's devices on this machine, so that `edgewright down` finds them again.

Known are the agents that the workspace has started, and the configurations that `device create` wrote: an agent that was
started on one by hand holds the lock of its state folder, which names its process. An agent leaves its modules running
when it ends, on purpose; taking a device down for good means its modules, too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError
from publisher.processes import (
    ProcessId,
    damaged,
    is_alive,
    module_command,
    process_id,
    read_record,
    terminate,
    write_record,
)
from publisher.workspace import Workspace

STOP_TIMEOUT_S = 20.0
MODULE_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """An agent started by this workspace; `config_file` is its `config.toml`."""

    process: ProcessId
    config_file: Path
    record_file: Path

    @property
    def is_running(self) -> bool:
        return is_alive(self.process)


def start_agent(workspace: Workspace, config_file: Path, log_file: Path) -> LocalAgent:
    """Start `edge-agent run` in the background; its log goes to `log_file`."""
    command = module_command("edge_agent", "--config", str(config_file.absolute()), "run")
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    agent = LocalAgent(
        process_id(process.pid), config_file.absolute(), _folder(workspace) / f"{process.pid}.json"
    )
    write_record(agent.record_file, agent.process, config=str(agent.config_file))
    return agent


def remember_config(workspace: Workspace, config_file: Path) -> None:
    """Note a configuration that an agent may be started on by hand, here."""
    path = str(config_file.absolute())
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    (_folder(workspace) / f"{name}.config").write_text(path, encoding="utf-8")


def known_configs(workspace: Workspace) -> list[Path]:
    """Every configuration of an agent of this workspace on this machine."""
    noted = [Path(file.read_text(encoding="utf-8")) for file in _folder(workspace).glob("*.config")]
    return sorted({*noted, *(agent.config_file for agent in local_agents(workspace))})


def agent_on(config_file: Path) -> ProcessId | None:
    """The agent that runs on this configuration now, whoever started it: it holds its state folder's lock file open."""
    try:
        state_dir, _ = _settings(config_file)
        lock = (state_dir / "lock").absolute()
        process = process_id(int(lock.read_text(encoding="ascii")))
        held = {os.path.realpath(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
    except (PublishError, OSError, ValueError):
        return None  # it never ran, has ended, is just beginning, or its settings say nothing
    return process if os.path.realpath(lock) in held else None


def running_agents(workspace: Workspace) -> set[ProcessId]:
    """The agents of this workspace's devices that run on this machine."""
    started = {agent.process for agent in local_agents(workspace) if agent.is_running}
    return started | {process for config in known_configs(workspace) if (process := agent_on(config))}


def local_agents(workspace: Workspace) -> list[LocalAgent]:
    """Every agent that was started, running or not.

    Raises:
        ProcessRecordError: what is known of one is damaged.
    """
    agents = []
    for path in sorted(_folder(workspace).glob("*.json")):
        found = read_record(path)
        if found is not None:
            process, record = found
            agents.append(LocalAgent(process, Path(_member(path, record, "config")), path))
    return agents


def stop_device(workspace: Workspace, config_file: Path) -> int:
    """Stop the agents on this configuration, then its modules; returns how many modules were stopped.

    Raises:
        PublishError: an agent cannot be ended; its modules are left alone.
    """
    started = [agent for agent in local_agents(workspace) if agent.config_file == config_file]
    by_hand = agent_on(config_file)
    for process in {agent.process for agent in started} | ({by_hand} if by_hand else set()):
        if not terminate(process, timeout_s=STOP_TIMEOUT_S):
            raise PublishError(f"edge agent (process {process.pid}) cannot be ended", code="agent-stop")
    for agent in started:
        agent.record_file.unlink(missing_ok=True)
    return _stop_modules(config_file)


def _stop_modules(config_file: Path) -> int:
    from edge_containers.process_runtime import ProcessRuntime

    state_dir, python = _settings(config_file)
    root = state_dir / "runtime"
    if not root.is_dir():
        return 0
    runtime = ProcessRuntime(root, python)
    modules = runtime.list()
    for module in modules:
        runtime.stop(module.name, module.instance_id, timeout_s=MODULE_STOP_TIMEOUT_S)
        runtime.remove(module.name, module.instance_id)
    return len(modules)


def _settings(config_file: Path) -> tuple[Path, Path]:
    """State folder and modules' interpreter; defaults where the file, or what it says, is gone."""
    try:
        settings = tomllib.loads(config_file.read_text(encoding="utf-8"))
        state_dir = settings.get("agent", {}).get("state_dir", "state")
        return config_file.parent / state_dir, Path(
            settings.get("process", {}).get("python", "/usr/bin/python3")
        )
    except FileNotFoundError:
        return config_file.parent / "state", Path("/usr/bin/python3")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PublishError(
            f"the modules of {config_file} are left running: it cannot be read ({error})",
            code="agent-config",
            where=str(config_file),
        ) from error


def _member(path: Path, record: Any, name: str) -> str:
    try:
        return str(record[name])
    except KeyError as error:
        raise damaged(path, error) from error


def _folder(workspace: Workspace) -> Path:
    folder = workspace.run / "agents"
    folder.mkdir(exist_ok=True)
    return folder
