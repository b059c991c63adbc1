"""What a workspace has and runs, and how to take all of it down."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from publisher.agents import local_agents, stop_device
from publisher.devices import read_rollout
from publisher.embedded_hub import EmbeddedHub, hub_endpoint
from publisher.images import Image
from publisher.models import Model
from publisher.workspace import Workspace

# In a folder that the demo made; only such a folder is ever removed.
DEMO_MARK = "demo"


@dataclass(frozen=True, slots=True)
class TornDown:
    """What `tear_down` ended and removed."""

    agents: int
    modules: int
    hub: bool
    removed: Path | None


def overview(workspace: Workspace) -> dict[str, Any]:
    """Counts, the hub, and each edge device with the result of its last deployment."""
    hub = EmbeddedHub(workspace).status()
    document: dict[str, Any] = {
        "workspace": str(workspace.root),
        "models": len(Model.list(workspace)),
        "images": len(Image.list(workspace)),
        "hub": "stopped" if hub.pid is None else f"running, pid {hub.pid}",
        "agents": [f"pid {agent.process.pid}" for agent in local_agents(workspace) if agent.is_running],
    }
    if hub.pid is not None:
        client = hub_endpoint(workspace).client()
        document["devices"] = {
            device.device_id: _device(client, device.device_id) if device.is_edge else "device"
            for device in client.list_devices()
        }
    return document


def tear_down(workspace: Workspace) -> TornDown:
    """Stop agents, their modules and the hub; remove the folder if the demo made it."""
    agents = local_agents(workspace)
    running = sum(agent.is_running for agent in agents)
    modules = sum(stop_device(workspace, config) for config in sorted({a.config_file for a in agents}))
    hub = EmbeddedHub(workspace).stop()
    removed = None
    if (workspace.state / DEMO_MARK).exists():
        shutil.rmtree(workspace.root)
        removed = workspace.root
    return TornDown(running, modules, hub, removed)


def _device(client: Any, device_id: str) -> str:
    rollout = read_rollout(client, device_id)
    return rollout.result or f"deployment {rollout.desired_version} under way"
