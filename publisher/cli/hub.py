"""`edgewright hub`: the embedded hub of a workspace, and what arrives at it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
)
from publisher.embedded_hub import (
    CONNECTION_STRING_VARIABLE,
    EmbeddedHub,
    HubAddress,
    HubStatus,
    hub_endpoint,
)
from publisher.embedded_hub_client import TelemetryRecord
from publisher.workspace import Workspace

app = command_group("The embedded hub: identities, twins, deployments, telemetry and a registry, offline.")

HostOption = Annotated[
    str, typer.Option(help="Address to listen on; the registry is plain HTTP on loopback alone.")
]
MqttPortOption = Annotated[int, typer.Option(help="Device SDKs know no other MQTT port than 8883.")]
HttpsPortOption = Annotated[int, typer.Option(help="Port of the service REST API.")]
RegistryPortOption = Annotated[int, typer.Option(help="Port of the image registry.")]
LONGEST_WAIT_S = 30.0
FIRST_ADDRESS = HubAddress()


def _as_before(default: object) -> str:
    return f"{default} at first, then as the last time."


@app.command()
def start(
    *,
    host: Annotated[
        str | None, typer.Option(help=f"Loopback address to listen on; {_as_before(FIRST_ADDRESS.host)}")
    ] = None,
    mqtt_port: Annotated[
        int | None, typer.Option(help=f"MQTT; device SDKs know no other than {FIRST_ADDRESS.mqtt_port}.")
    ] = None,
    https_port: Annotated[
        int | None, typer.Option(help=f"Service REST API; {_as_before(FIRST_ADDRESS.https_port)}")
    ] = None,
    registry_port: Annotated[
        int | None, typer.Option(help=f"Image registry; {_as_before(FIRST_ADDRESS.registry_port)}")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Start the hub in the background and wait until it answers."""
    hub = EmbeddedHub(Workspace.open())
    given: dict[str, Any] = {
        "host": host,
        "mqtt_port": mqtt_port,
        "https_port": https_port,
        "registry_port": registry_port,
    }
    # Manifests and devices hold the address, so it stays unless another one is asked for.
    address = replace(
        hub.status().address or FIRST_ADDRESS,
        **{key: each for key, each in given.items() if each is not None},
    )
    with progress("starting the hub"):
        status = hub.start(address)
    show_document(_status(hub, status), chosen(output, as_json))
    note("next: edgewright device create NAME --agent-config DIRECTORY")


@app.command()
def stop() -> None:
    """Stop the hub; its data stays."""
    with progress("stopping the hub"):
        was_running = EmbeddedHub(Workspace.open()).stop()
    note("hub stopped" if was_running else "hub was not running")


@app.command()
def status(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Say whether the hub runs and where it listens. Exit code 1 when it does not run."""
    hub = EmbeddedHub(Workspace.open())
    found = hub.status()
    show_document(_status(hub, found), chosen(output, as_json))
    if os.environ.get(CONNECTION_STRING_VARIABLE):
        note(f"this workspace uses another hub: {CONNECTION_STRING_VARIABLE} is set")
    if found.pid is None:
        note("next: edgewright hub start")
        raise typer.Exit(1)


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="Folder of the hub's data; made if absent.")],
    *,
    host: HostOption = "127.0.0.1",
    mqtt_port: MqttPortOption = 8883,
    https_port: HttpsPortOption = 8443,
    registry_port: RegistryPortOption = 5050,
    san: Annotated[
        list[str] | None, typer.Option(help="Further name or address of the certificate. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say as JSON when it is ready.")] = False,
) -> None:
    """Run a hub in the foreground, without a workspace: for services and containers."""
    from iot_hub.__main__ import main

    arguments = ["serve", "--data", str(data), "--host", host, "--mqtt-port", str(mqtt_port)]
    arguments += ["--https-port", str(https_port), "--registry-port", str(registry_port)]
    for name in san or ():
        arguments += ["--san", name]
    raise typer.Exit(main([*arguments, *(["--json"] if as_json else [])]))


@app.command()
def monitor(
    *,
    device: Annotated[str | None, typer.Option("--device", "-d", help="Only this device.")] = None,
    start_at: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Offset to begin at; what arrives from now on by default."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds; exit code 1 if --count is short.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document per line.")] = False,
) -> None:
    """Print messages as they arrive at the hub."""
    client = hub_endpoint(Workspace.open()).extras()
    offset = client.telemetry().next_offset if start_at is None else start_at
    deadline = None if timeout is None else time.monotonic() + timeout
    seen = 0
    while count is None or seen < count:
        left = LONGEST_WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
        page = client.telemetry(device_id=device, offset=offset, wait_s=min(left, LONGEST_WAIT_S))
        offset = page.next_offset
        for record in page.records[: None if count is None else count - seen]:
            print(json.dumps(_document(record)) if as_json else _line(record), flush=True)
            seen += 1
        if deadline is not None and time.monotonic() >= deadline:
            break
    if count is not None and seen < count:
        note(f"{seen} of {count} messages arrived in {timeout:g} s")
        raise typer.Exit(1)


def _status(hub: EmbeddedHub, found: HubStatus) -> dict[str, object]:
    document: dict[str, object] = {"state": "stopped" if found.pid is None else "running", "pid": found.pid}
    if found.address is not None:
        address = found.address
        document |= {
            "mqtt": f"{address.host}:{address.mqtt_port}",
            "https": f"https://{address.host}:{address.https_port}",
            "registry": address.registry,
            "connectionStringFile": str(hub.connection_string_file),
            "caFile": str(hub.ca_file),
        }
    return document


def _document(record: TelemetryRecord) -> dict[str, object]:
    return {
        "offset": record.offset,
        "deviceId": record.device_id,
        "moduleId": record.module_id,
        "enqueuedTime": record.enqueued_time,
        "systemProperties": dict(record.system_properties),
        "properties": dict(record.properties),
        "body": _body(record.body),
    }


def _body(body: bytes) -> object:
    """JSON as it is, other text as text, anything else as its length."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return f"{len(body)} bytes"
    try:
        return json.loads(text)
    except ValueError:
        return text


def _line(record: TelemetryRecord) -> str:
    source = record.device_id if record.module_id is None else f"{record.device_id}/{record.module_id}"
    body = _body(record.body)
    shown = body if isinstance(body, str) else json.dumps(body)
    properties = "".join(f" {key}={value}" for key, value in record.properties.items())
    return f"{record.offset} {record.enqueued_time} {source}{properties} {shown}"
