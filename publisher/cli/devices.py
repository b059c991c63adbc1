"""`edgewright device`: identities, tags, twins and methods of devices."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_contracts.query_condition import parse_condition
from edge_contracts.redact import redact_document
from publisher.agents import remember_config
from publisher.cli.options import labels_of
from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
    show_rows,
)
from publisher.devices import (
    Rollout,
    check_device_id,
    device_connection_string,
    prepare_agent_folder,
    read_rollout,
    wait_for_rollout,
    write_agent_config,
)
from publisher.embedded_hub import hub_endpoint
from publisher.errors import UsageError
from publisher.hub_client import LIST_LIMIT, DeviceIdentity, HubClient, HubConflictError
from publisher.workspace import Workspace

app = command_group("Devices and their twins.")

DeviceArgument = Annotated[
    str, typer.Argument(metavar="DEVICE", help="Id of the device.", callback=check_device_id)
]
COLUMNS = {"deviceId": "DEVICE", "status": "STATUS", "edge": "EDGE", "connection": "CONNECTION"}


def _client() -> HubClient:
    return hub_endpoint(Workspace.open()).client()


@app.command()
def create(
    device: DeviceArgument,
    *,
    edge: Annotated[bool, typer.Option("--edge/--no-edge", help="Runs modules.")] = True,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    agent_config: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Also write the edge agent's configuration there."),
    ] = None,
    edge_hub_host: Annotated[
        str,
        typer.Option(help="Address of the device's own hub; another one for each device on one machine."),
    ] = "127.0.0.2",
    python: Annotated[
        str | None, typer.Option(help="Interpreter that runs modules without a base, on the device.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Create a device at the hub, and what its edge agent starts with."""
    tags = labels_of(tag, "--tag")
    if agent_config is not None and not edge:
        raise UsageError("--agent-config is for a device that runs modules, not for one with --no-edge")
    workspace = Workspace.open()
    endpoint = hub_endpoint(workspace)
    client = endpoint.client()
    if agent_config is not None:  # before anything is made at the hub
        python = python or _module_python(workspace)
        prepare_agent_folder(agent_config)
    identity = _create(client, device, edge=edge)
    document = _row(identity) | {"tags": tags}
    try:
        if tags:
            client.update_tags(device, tags)
        if agent_config is not None and python is not None:
            written = write_agent_config(
                agent_config, endpoint, identity, edge_hub_host=edge_hub_host, python=python
            )
            remember_config(workspace, written.config_file)
            document["agentConfig"] = str(written.config_file)
    except BaseException:
        client.delete_device(device)
        raise
    workspace.audit("device create", device, edge=edge)
    show_document(document, chosen(output, as_json))
    if agent_config is not None:
        note(f"next: edge-agent --config {agent_config / 'config.toml'} run")
    else:
        note(f"next: edgewright device connection-string {device} --show")


@app.command("list")
def list_devices(
    *,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only those whose twin fulfils it, as in \"tags.site = 'north'\" (docs/reference/query.md).",
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List devices."""
    if query is not None:
        # Read here first: the hub would count characters from the SELECT that it gets.
        parse_condition(query, where="--query")
    client = _client()
    devices = client.list_devices() if query is None else client.find_devices(query)
    show_rows([_row(device) for device in devices], COLUMNS, chosen(output, as_json))
    if len(devices) == LIST_LIMIT:
        note(f"these are the first {LIST_LIMIT}: a hub lists no more at once")


@app.command()
def show(
    device: DeviceArgument,
    *,
    wait: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="First wait until it has finished its deployment."),
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show a device, its deployment and its modules as it reported them."""
    client = _client()
    document: dict[str, Any] = _row(client.get_device(device))
    if document["edge"]:
        if wait is not None:
            with progress(f"waiting for device {device}"):
                rollout = wait_for_rollout(client, device, wait)
        else:
            rollout = read_rollout(client, device)
        document |= {"connection": _connection(rollout.connected), **rollout_document(rollout)}
    document["tags"] = dict(client.get_twin(device).tags)
    show_document(document, chosen(output, as_json))


@app.command()
def delete(device: DeviceArgument) -> None:
    """Delete a device, its modules and its twins at the hub."""
    workspace = Workspace.open()
    hub_endpoint(workspace).client().delete_device(device)
    workspace.audit("device delete", device)
    note(f"device {device} deleted")


@app.command()
def tag(
    device: DeviceArgument,
    tags: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE…", help="An empty value takes the tag away.")
    ],
) -> None:
    """Set tags of a device."""
    changes = {key: value or None for key, value in labels_of(tags, "a tag").items()}
    found = _client().update_tags(device, changes)
    show_document({"deviceId": device, "tags": dict(found.tags)}, Format.TABLE)


@app.command()
def twin(
    device: DeviceArgument,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Of this module.")] = None,
    show_secrets: Annotated[bool, typer.Option("--show", help="Print registry passwords too.")] = False,
) -> None:
    """Print a twin as JSON."""
    found = _client().get_twin(device, module)
    document = {
        "deviceId": found.device_id,
        "moduleId": found.module_id,
        "connectionState": "Connected" if found.connected else "Disconnected",
        "tags": dict(found.tags),
        "properties": {"desired": dict(found.desired), "reported": dict(found.reported)},
    }
    print(json.dumps(document if show_secrets else redact_document(document), indent=2))


@app.command()
def method(
    device: DeviceArgument,
    name: Annotated[str, typer.Argument(help="Name of the method.")],
    *,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Of this module.")] = None,
    payload: Annotated[str, typer.Option(help="JSON.")] = "null",
    timeout: Annotated[int, typer.Option(min=5, max=300, help="Seconds to wait for the answer.")] = 30,
) -> None:
    """Call a direct method and print the answer. Exit code 1 for a status of 400 and above."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise UsageError(f"--payload must be JSON: {error}", where="--payload") from error
    result = _client().invoke_method(device, module, name, value, timeout)
    print(json.dumps({"status": result.status, "payload": result.payload}, indent=2))
    if result.status >= 400:
        raise typer.Exit(1)


@app.command("connection-string")
def connection_string(
    device: DeviceArgument,
    show_secrets: Annotated[bool, typer.Option("--show", help="Print the key.")] = False,
) -> None:
    """Print what a device signs in with."""
    endpoint = hub_endpoint(Workspace.open())
    text = device_connection_string(endpoint, endpoint.client().get_device(device)).format()
    print(text if show_secrets else text.partition("SharedAccessKey=")[0] + "SharedAccessKey=***")


def rollout_document(rollout: Rollout) -> dict[str, Any]:
    """A rollout for people and for scripts."""
    edgewright = rollout.reported.get("edgewright") or {}
    return {
        "desiredVersion": rollout.desired_version,
        "reportedVersion": rollout.reported_version,
        "code": rollout.code,
        "result": rollout.result or ("under way" if rollout.has_deployment else "no deployment"),
        "description": rollout.description,
        "runtime": (edgewright.get("runtime") or {}).get("tier", ""),
        "modules": {
            name: f"{module.get('runtimeStatus')} {(module.get('settings') or {}).get('image')}"
            for name, module in rollout.modules.items()
        },
    }


def _create(client: HubClient, device: str, *, edge: bool) -> DeviceIdentity:
    try:
        return client.create_device(device, edge=edge)
    except HubConflictError as error:
        error.next_command = f"edgewright device show {device}"
        raise


def _row(device: DeviceIdentity) -> dict[str, Any]:
    return {
        "deviceId": device.device_id,
        "status": "enabled" if device.enabled else "disabled",
        "edge": device.is_edge,
        # An edge device is at the hub by its modules; `show` asks its agent's twin.
        "connection": "" if device.is_edge else _connection(device.connected),
    }


def _connection(connected: bool) -> str:
    return "connected" if connected else "disconnected"


def _module_python(workspace: Workspace) -> str:
    """The interpreter of the images' Python version that is not this environment's: modules run on a bare one."""
    wanted = f"python{workspace.settings.environment.python}"
    if f"python{sys.version_info.major}.{sys.version_info.minor}" == wanted:
        return str(Path(sys.base_prefix) / "bin" / wanted)
    found = shutil.which(wanted)
    if found is None:
        raise UsageError(
            f"no {wanted} on this machine's PATH: name the device's interpreter with --python PATH"
        )
    return found
