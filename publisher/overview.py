"""What a workspace has and runs, and how to take all of it down."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import EdgewrightError, PublishError
from publisher.agents import known_configs, running_agents, stop_device
from publisher.devices import read_rollout
from publisher.embedded_hub import CONNECTION_STRING_VARIABLE, EmbeddedHub, hub_endpoint
from publisher.hub_client import HubClient
from publisher.images import Image
from publisher.models import Model
from publisher.workspace import Workspace

# In a folder that the demo made; only such a folder is ever removed.
DEMO_MARK = "demo"
REMOVE_TIMEOUT_S = 5.0
# Each costs a request.
DEVICES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class TornDown:
    """What `tear_down` ended and removed."""

    agents: int
    modules: int
    hub: bool
    removed: Path | None


def overview(workspace: Workspace) -> dict[str, Any]:
    """Counts, the hub, and each edge device with the result of its last deployment.

    What is not well with one part is said in its place; the other parts are shown nevertheless.
    """
    document: dict[str, Any] = {
        "workspace": str(workspace.root),
        "models": len(Model.list(workspace)),
        "images": len(Image.list(workspace)),
    }
    with _said_in(document, "hub"):
        hub = EmbeddedHub(workspace).status()
        document["hub"] = "stopped" if hub.pid is None else f"running, pid {hub.pid}"
        if os.environ.get(CONNECTION_STRING_VARIABLE) or hub.pid is not None:
            with _said_in(document, "devices"):
                client = hub_endpoint(workspace).client()
                document["hub"] = (
                    document["hub"] if hub.pid is not None else f"{client.host}, by the environment"
                )
                document["devices"] = _devices(client)
    with _said_in(document, "agents"):
        document["agents"] = sorted(f"pid {process.pid}" for process in running_agents(workspace))
    return document


def is_running(workspace: Workspace) -> bool:
    """Whether the workspace's hub or an agent of its devices runs on this machine."""
    return EmbeddedHub(workspace).status().pid is not None or bool(running_agents(workspace))


def tear_down(workspace: Workspace) -> TornDown:
    """Stop agents, their modules and the hub; remove the folder if the demo made it.

    Raises:
        EdgewrightError: something could not be stopped; everything else was, and nothing was removed.
    """
    failures: list[EdgewrightError] = []
    running, modules, hub = 0, 0, False
    with _kept_in(failures):
        running = len(running_agents(workspace))
        for config in known_configs(workspace):
            with _kept_in(failures):
                modules += stop_device(workspace, config)
    with _kept_in(failures):
        hub = EmbeddedHub(workspace).stop()
    if failures:
        raise failures[0]
    removed = None
    if (workspace.state / DEMO_MARK).exists():
        _remove(workspace.root)
        removed = workspace.root
    return TornDown(running, modules, hub, removed)


def _remove(folder: Path) -> None:
    """Remove a folder in which something that was just told to end may still be writing."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while True:
        try:
            shutil.rmtree(folder)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                raise PublishError(
                    f"{folder} could not be removed: {error}", code="remove", where=str(folder)
                ) from error
            time.sleep(0.1)


def _devices(client: HubClient) -> dict[str, str]:
    devices = client.list_devices()
    shown = {
        device.device_id: _deployment(client, device.device_id) if device.is_edge else "device"
        for device in devices[:DEVICES_SHOWN]
    }
    if len(devices) > DEVICES_SHOWN:
        shown["…"] = f"{len(devices) - DEVICES_SHOWN} more: edgewright device list"
    return shown


def _deployment(client: HubClient, device_id: str) -> str:
    rollout = read_rollout(client, device_id)
    if not rollout.has_deployment:
        return "no deployment"
    return rollout.result or f"deployment {rollout.desired_version} under way"


@contextmanager
def _said_in(document: dict[str, Any], key: str) -> Iterator[None]:
    try:
        yield
    except EdgewrightError as error:
        document[key] = f"error: {error.message}"


@contextmanager
def _kept_in(failures: list[EdgewrightError]) -> Iterator[None]:
    try:
        yield
    except EdgewrightError as error:
        failures.append(error)
