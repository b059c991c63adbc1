"""The hub of a workspace: the embedded one that it starts and stops, or any other that the environment names.

The embedded hub is a process of its own (`python -m iot_hub serve`) which outlives the command that started it. Its
data is in `.edgewright/hub/`, what is known of the running process in `.edgewright/run/hub.json`; a process is
recognised by id and start time, so an id that the system gave to another program is never signalled.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_contracts.errors import HubError
from edge_contracts.redact import Secret, redact_text
from edge_contracts.sas import ConnectionString
from publisher.embedded_hub_client import EmbeddedHubClient
from publisher.hub_client import HubClient, connect, service_identity
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
from publisher.signed_in import SignedIn, sign_in
from publisher.workspace import Workspace

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
HOST_VARIABLE = "EDGEWRIGHT_HUB_HOST"
CONNECTION_STRING_VARIABLE = "EDGEWRIGHT_HUB_CONNECTION_STRING"
CA_FILE_VARIABLE = "EDGEWRIGHT_HUB_CA_FILE"


class HubStartError(HubError):
    """The embedded hub did not start; the message holds its own last words."""

    code = "hub-start"


class NoHubError(HubError):
    """The workspace has no hub yet, or not one that can do this."""

    code = "no-hub"


class HubStoppedError(HubError):
    """The workspace's hub is not running."""

    code = "hub-stopped"
    temporary = True


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

    def __str__(self) -> str:
        ports = f"MQTT {self.mqtt_port}, HTTPS {self.https_port}, registry {self.registry_port}"
        return f"{self.host} ({ports})"


@dataclass(frozen=True, slots=True)
class HubStatus:
    """`pid` is None when it is stopped; `address` is where it listens, or did."""

    pid: int | None
    address: HubAddress | None


class EmbeddedHub:
    """The embedded hub of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.data_dir = workspace.hub
        self._workspace = workspace
        self._record_file = workspace.run / "hub.json"
        self._ready_file = workspace.run / "hub.ready"
        self._log = workspace.run / "hub.log"

    def start(self, address: HubAddress) -> HubStatus:
        """Start it in the background and wait until it answers; does nothing when it runs there already.

        Raises:
            HubStartError: it ended (a port in use, say), was not ready in 30 s, or runs at another address; nothing is
                left running that did not run before.
        """
        _check_host(address.host)
        with self._workspace.lock("hub", timeout_s=START_TIMEOUT_S + STOP_TIMEOUT_S):
            current = self.status()
            if current.pid is None:
                return self._start(address)
        if current.address != address:
            raise HubStartError(
                f"the hub runs already, at {current.address}, and cannot be started at {address}",
                next_command="edgewright hub stop",
            )
        return current

    def stop(self) -> bool:
        """Ask it to finish, and make it if it does not in 15 s; True when it was running.

        Raises:
            HubError: it runs even so.
        """
        state = self._read_state()
        if state is None or not is_alive(state[0]):
            return False
        if not terminate(state[0], timeout_s=STOP_TIMEOUT_S):
            raise HubError(
                f"embedded hub (process {state[0].pid}) cannot be ended; its log is {self._log}",
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

    def _start(self, address: HubAddress) -> HubStatus:
        command = module_command("iot_hub", "serve", "--json", "--data", str(self.data_dir))
        command += ["--host", address.host, "--mqtt-port", str(address.mqtt_port)]
        command += ["--https-port", str(address.https_port), "--registry-port", str(address.registry_port)]
        with self._ready_file.open("wb") as ready, self._log.open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=ready,
                stderr=log,
                cwd=self.data_dir.parent,  # not the user's folder, which could then not be unmounted
                start_new_session=True,
            )
        try:
            ready_line = self._wait_until_ready(process, log_start)
            bound = HubAddress(address.host, ready_line["mqtt"], ready_line["https"], ready_line["registry"])
            write_record(self._record_file, process_id(process.pid), address=asdict(bound))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return HubStatus(process.pid, bound)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log_start: int) -> Mapping[str, Any]:
        """The hub's ready line: the ports it listens on."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (line := self._ready_file.read_bytes()).endswith(b"\n"):
            if process.poll() is not None:
                raise self._ended(log_start)
            if time.monotonic() > deadline:
                raise HubStartError(
                    f"embedded hub was not ready in {START_TIMEOUT_S:.0f} s; its log is {self._log}"
                )
            time.sleep(0.02)
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _ended(self, log_start: int) -> HubStartError:
        with self._log.open("rb") as log:
            log.seek(log_start)
            lines = log.read()[-4096:].decode(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith("next:")]
        words = (
            redact_text(said[-1].removeprefix("error: ")) if said else f"no message; its log is {self._log}"
        )
        # Another address of this machine has all three ports free, and MQTT's cannot be another.
        elsewhere = "edgewright hub start --host 127.0.1.1" if "cannot listen" in words else None
        return HubStartError(f"embedded hub did not start: {words}", next_command=elsewhere)

    def _read_state(self) -> tuple[ProcessId, HubAddress] | None:
        found = read_record(self._record_file)
        if found is None:
            return None
        process, record = found
        try:
            return process, HubAddress(**record["address"])
        except (KeyError, TypeError) as error:
            raise damaged(self._record_file, error) from error


def _check_host(host: str) -> None:
    """Clients are told this very host, in certificates and image references.

    Raises:
        HubStartError: they could not use it.
    """
    if host in ("", "0.0.0.0") or ":" in host:
        raise HubStartError(
            f"a workspace's hub listens on one IPv4 address or name that its devices can dial, not on {host!r}; "
            "a hub for several networks is run by edgewright hub serve",
            where="--host",
            next_command="edgewright hub serve --help",
        )


@dataclass(frozen=True, slots=True)
class HubEndpoint:
    """How a workspace reaches its hub; `address` is set for the embedded one."""

    access: Secret | SignedIn
    """A policy's connection string, or who is signed in to Azure."""

    ca_file: Path | None
    address: HubAddress | None
    is_running: bool = True

    @property
    def authority(self) -> str:
        """`host` or `host:port` of its service API."""
        return self.access.host if isinstance(self.access, SignedIn) else self.policy.authority

    @property
    def policy(self) -> ConnectionString:
        """The policy whose key opens the hub.

        Raises:
            NoHubError: there is none: somebody is signed in.
        """
        if isinstance(self.access, SignedIn):
            raise NoHubError(f"hub {self.access.host} is used by signing in, without a policy's key")
        return ConnectionString.parse(self.access.reveal())

    def client(self) -> HubClient:
        """The service client for this hub.

        Raises:
            HubStoppedError: it is the embedded one, and that does not run.
        """
        self._check_running()
        access = self.access if isinstance(self.access, SignedIn) else self.access.reveal()
        return connect(access, ca_file=self.ca_file)

    def extras(self) -> EmbeddedHubClient:
        """What only the embedded hub offers.

        Raises:
            NoHubError: this is another hub.
            HubStoppedError: it does not run.
        """
        if self.address is None:
            raise NoHubError(
                f"this needs the embedded hub, and the environment names another one: {self.authority}",
                next_command=f"unset {CONNECTION_STRING_VARIABLE} {HOST_VARIABLE}; edgewright hub start",
            )
        self._check_running()
        return EmbeddedHubClient(self.policy.format(), self.ca_file)

    def _check_running(self) -> None:
        if not self.is_running:
            raise HubStoppedError(
                f"the hub of this workspace is stopped; it listened on {self.address}",
                next_command="edgewright hub start",
            )


def hub_endpoint(workspace: Workspace) -> HubEndpoint:
    """The hub that this workspace uses.

    $EDGEWRIGHT_HUB_CONNECTION_STRING, else $EDGEWRIGHT_HUB_HOST by signing in to Azure, else its embedded hub. A hub whose certificate is not of a public authority has that in $EDGEWRIGHT_HUB_CA_FILE.

    Raises:
        NoHubError: neither is there, or the running hub's data is gone.
        ContractError: the variable holds no connection string of a service.
        SignInError: signing in needs a package that is not installed.
    """
    named_ca = os.environ.get(CA_FILE_VARIABLE)
    ca_file = Path(named_ca) if named_ca else None
    if named := os.environ.get(CONNECTION_STRING_VARIABLE):
        service_identity(named, where=CONNECTION_STRING_VARIABLE)
        return HubEndpoint(Secret(named), ca_file, None)
    if host := os.environ.get(HOST_VARIABLE):
        return HubEndpoint(sign_in(host), ca_file, None)
    hub = EmbeddedHub(workspace)
    status = hub.status()
    if status.address is not None and hub.connection_string_file.exists():
        text = hub.connection_string_file.read_text(encoding="utf-8").strip()
        return HubEndpoint(Secret(text), hub.ca_file, status.address, is_running=status.pid is not None)
    if status.pid is not None:
        raise NoHubError(
            f"the hub runs (process {status.pid}), but its data in {hub.data_dir} is gone: stop it, then start it anew",
            where=str(hub.data_dir),
            next_command="edgewright hub stop",
        )
    raise NoHubError(
        f"workspace {workspace.root} has no hub: start the embedded one, or set {CONNECTION_STRING_VARIABLE}",
        next_command="edgewright hub start",
    )
