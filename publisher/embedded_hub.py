"""The hub of a workspace: the embedded one that it starts and stops, or any other that its settings name.

The embedded hub is a process of its own (`python -m iot_hub serve`) which outlives the command that started it. Its
data is in `.edgewright/hub/`, what is known of the running process in `.edgewright/run/hub.json`; a process is
recognised by id and start time, so an id that the system gave to another program is never signalled.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import urllib3

from edge_contracts.errors import HubError
from edge_contracts.redact import Secret, redact_text
from edge_contracts.sas import ConnectionString
from publisher.hub_client import HubClient, HubUnreachableError, connect, service_token
from publisher.processes import ProcessId, is_alive, process_id, terminate
from publisher.workspace import Workspace

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
CONNECTION_STRING_VARIABLE = "EDGEWRIGHT_HUB_CONNECTION_STRING"


class HubStartError(HubError):
    """The embedded hub did not start; the message holds its own last words."""

    code = "hub-start"


class NoHubError(HubError):
    """The workspace has no hub yet."""

    code = "no-hub"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where an embedded hub listens."""

    host: str = "127.0.0.1"
    mqtt_port: int = 8883
    https_port: int = 8443
    registry_port: int = 5050

    @property
    def registry(self) -> str:
        """The registry as image references spell it."""
        return f"{self.host}:{self.registry_port}"


@dataclass(frozen=True, slots=True)
class HubStatus:
    """`pid` is None when it is stopped; `address` is where it listens, or did."""

    pid: int | None
    address: HubAddress | None


class EmbeddedHub:
    """The embedded hub of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.data_dir = workspace.hub
        self._state_file = workspace.run / "hub.json"
        self._log = workspace.run / "hub.log"

    def start(self, address: HubAddress) -> HubStatus:
        """Start it in the background and wait until it answers; does nothing when it runs already.

        Raises:
            HubStartError: it ended (a port in use, say) or was not ready in 30 s; nothing is left running.
        """
        current = self.status()
        if current.pid is not None:
            return current
        ready_file = self._state_file.with_name("hub.ready")
        command = [sys.executable, "-m", "iot_hub", "serve", "--json", "--data", str(self.data_dir)]
        command += ["--host", address.host, "--mqtt-port", str(address.mqtt_port)]
        command += ["--https-port", str(address.https_port), "--registry-port", str(address.registry_port)]
        with ready_file.open("wb") as ready, self._log.open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                command, stdout=ready, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            self._wait_until_ready(process, ready_file, log_start)
        except BaseException:
            process.kill()
            process.wait()
            raise
        identity = process_id(process.pid)
        _write(self._state_file, {"process": asdict(identity), "address": asdict(address)})
        return HubStatus(process.pid, address)

    def stop(self) -> bool:
        """Ask it to finish and wait; True when it was running.

        Raises:
            HubError: it did not end in 15 s.
        """
        state = self._read_state()
        if state is None or not is_alive(state[0]):
            return False
        if not terminate(state[0], timeout_s=STOP_TIMEOUT_S, stop_signal=signal.SIGTERM):
            raise HubError(
                f"embedded hub (process {state[0].pid}) did not end within {STOP_TIMEOUT_S:.0f} s; "
                f"its log is {self._log}",
                code="hub-stop",
            )
        return True

    def status(self) -> HubStatus:
        state = self._read_state()
        if state is None:
            return HubStatus(None, None)
        process, address = state
        return HubStatus(process.pid if is_alive(process) else None, address)

    @property
    def connection_string_file(self) -> Path:
        return self.data_dir / "connection-string"

    @property
    def ca_file(self) -> Path:
        return self.data_dir / "ca.pem"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], ready_file: Path, log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"\n" not in ready_file.read_bytes():
            if process.poll() is not None:
                raise HubStartError(f"embedded hub did not start: {self._last_words(log_start)}")
            if time.monotonic() > deadline:
                raise HubStartError(
                    f"embedded hub was not ready in {START_TIMEOUT_S:.0f} s; its log is {self._log}"
                )
            time.sleep(0.02)

    def _last_words(self, log_start: int) -> str:
        with self._log.open("rb") as log:
            log.seek(log_start)
            lines = [
                line for line in log.read()[-4096:].decode(errors="replace").splitlines() if line.strip()
            ]
        said = [line for line in lines if not line.startswith("next:")]
        return (
            redact_text(said[-1].removeprefix("error: ")) if said else f"no message; its log is {self._log}"
        )

    def _read_state(self) -> tuple[ProcessId, HubAddress] | None:
        try:
            state = json.loads(self._state_file.read_text())
            return ProcessId(**state["process"]), HubAddress(**state["address"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(f"{self._state_file} is damaged: {error}", code="hub-state") from error


@dataclass(frozen=True, slots=True)
class HubEndpoint:
    """How a workspace reaches its hub; `registry` is set for the embedded one."""

    connection_string: Secret
    ca_file: Path | None
    address: HubAddress | None

    def client(self) -> HubClient:
        """The service client for this hub."""
        return connect(self.connection_string.reveal(), ca_file=self.ca_file)

    def extras(self) -> EmbeddedHubClient:
        """What only the embedded hub offers.

        Raises:
            NoHubError: this is another hub.
        """
        if self.address is None:
            raise NoHubError(
                "this needs the embedded hub, and the workspace uses another one",
                next_command="edgewright hub start",
            )
        return EmbeddedHubClient(self)


def hub_endpoint(workspace: Workspace) -> HubEndpoint:
    """The hub that this workspace uses: $EDGEWRIGHT_HUB_CONNECTION_STRING, else its embedded hub.

    Raises:
        NoHubError: neither is there.
    """
    if named := os.environ.get(CONNECTION_STRING_VARIABLE):
        return HubEndpoint(Secret(named), None, None)
    hub = EmbeddedHub(workspace)
    status = hub.status()
    if status.address is None or not hub.connection_string_file.exists():
        raise NoHubError(
            f"workspace {workspace.root} has no hub: start the embedded one, or set {CONNECTION_STRING_VARIABLE}",
            next_command="edgewright hub start",
        )
    text = hub.connection_string_file.read_text().strip()
    return HubEndpoint(Secret(text), hub.ca_file, status.address)


@dataclass(frozen=True, slots=True)
class TelemetryRecord:
    """One message as the embedded hub keeps it."""

    offset: int
    device_id: str
    module_id: str | None
    enqueued_time: str
    system_properties: Mapping[str, str]
    properties: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TelemetryPage:
    """Messages from an offset on; `next_offset` is where to go on."""

    records: tuple[TelemetryRecord, ...]
    next_offset: int


class EmbeddedHubClient:
    """The embedded hub's own REST paths: telemetry and registry credentials."""

    def __init__(self, endpoint: HubEndpoint) -> None:
        self._identity = ConnectionString.parse(endpoint.connection_string.reveal())
        self._base = f"https://{self._identity.authority}/edgewright"
        self._pool = urllib3.PoolManager(
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(endpoint.ca_file),
            timeout=urllib3.Timeout(connect=10, read=60),
            retries=False,
        )

    def telemetry(
        self, *, device_id: str | None = None, offset: int = 0, limit: int = 100, wait_s: float = 0
    ) -> TelemetryPage:
        """Messages from `offset` on, of one device or of all; waits up to `wait_s` for the first."""
        query = {"from": str(offset), "limit": str(limit), "wait": f"{wait_s:g}"}
        if device_id is not None:
            query["device"] = device_id
        answer = self._request("GET", "/telemetry", fields=query)
        records = tuple(_telemetry_record(row) for row in answer["messages"])
        return TelemetryPage(records, int(answer["next"]))

    def mint_credentials(self, repository: str, ttl_s: int) -> tuple[str, Secret]:
        """A new user of the embedded registry that may pull one repository for `ttl_s` seconds."""
        body = {"repository": repository, "actions": ["pull"], "ttlSeconds": ttl_s}
        answer = self._request("POST", "/registry/credentials", body=json.dumps(body))
        return str(answer["username"]), Secret(answer["password"])

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        headers = {"Authorization": service_token(self._identity), "Content-Type": "application/json"}
        try:
            response = self._pool.request(method, self._base + path, headers=headers, **arguments)
        except urllib3.exceptions.HTTPError as error:
            raise HubUnreachableError(
                f"hub {self._identity.authority} cannot be reached: {redact_text(str(error))}",
                where=self._identity.authority,
                next_command="edgewright hub start",
            ) from error
        if response.status >= 300:
            raise HubError(
                f"hub {self._identity.authority} refused {method} {path}: {response.status} "
                f"{redact_text(response.data.decode(errors='replace'))[:300]}",
                code="hub-rejected",
            )
        return response.json() if response.data else None


def _telemetry_record(row: Mapping[str, Any]) -> TelemetryRecord:
    return TelemetryRecord(
        offset=int(row["offset"]),
        device_id=row["deviceId"],
        module_id=row.get("moduleId"),
        enqueued_time=row["enqueuedTime"],
        system_properties=row["systemProperties"],
        properties=row["properties"],
        body=base64.b64decode(row["body"]),
    )


def _write(path: Path, document: object) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(document, indent=1), encoding="utf-8")
    scratch.replace(path)
