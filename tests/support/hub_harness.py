"""A hub in a process of its own, on a loopback address of its own, and Microsoft's SDKs pointed at it.

with HubProcess(tmp_path / "hub") as hub:
    registry = hub.registry_manager()
    device = hub.create_device("d")
    client = hub.device_client("d")
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
MQTT_PORT = 8883
_numbers = itertools.count()


def free_loopback_address() -> str:
    """An address of 127.0.0.0/8 on which the device SDK's one MQTT port is free.

    Processes start at different places of the range, so that test runs side by side do not meet.
    """
    for _ in range(1000):
        number = (os.getpid() * 251 + next(_numbers)) % (250 * 250 * 200)
        address = f"127.{10 + number // 62500 % 200}.{1 + number // 250 % 250}.{1 + number % 250}"
        with contextlib.suppress(OSError), socket.create_server((address, MQTT_PORT)):
            return address
    raise RuntimeError("no free loopback address")


def wait_until(condition: Callable[[], Any], timeout_s: float = 15.0, what: str = "the condition") -> Any:
    """The condition's first true value; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s:g} s"
        time.sleep(0.02)
    return value


class HubProcess:
    """`python -m iot_hub serve`, started on entry and ended on exit.

    Attributes:
        data_dir: the hub's folder; `ca_file` and `connection_string` are read from it.
        ready: the ready line: host and ports.
    """

    def __init__(self, data_dir: Path, host: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir
        self.host = host or free_loopback_address()
        self.ready: dict[str, Any] = {}
        self._options = options
        self._ports = {"https": 0, "registry": 0}
        self._process: subprocess.Popen[str] | None = None
        self._log_file = data_dir.with_name(f"{data_dir.name}.log")

    def __enter__(self) -> HubProcess:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    # The process.

    def start(self) -> None:
        """Start, with the data and the ports of the last time, and wait until it is ready."""
        with self._log_file.open("a") as log:
            self._process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout)
        assert line, f"the hub did not start:\n{self.log}"
        self.ready = json.loads(line)
        self._ports = {name: self.ready[name] for name in self._ports}

    def command(self) -> list[str]:
        ports = [f"--{name}-port={port}" for name, port in self._ports.items()]
        base = [sys.executable, "-m", "iot_hub", "serve", "--json", f"--data={self.data_dir}"]
        return [*base, f"--host={self.host}", *ports, *self._options]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start with the same data, address and ports."""
        assert self.stop() == 0, self.log
        self.start()

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    def _end(self, number: int) -> int:
        assert self._process is not None and self._process.stdout is not None
        self._process.send_signal(number)
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process.stdout.close()
        self._process = None
        return code

    # What clients need.

    @property
    def https_port(self) -> int:
        return int(self.ready["https"])

    @property
    def registry_address(self) -> str:
        return f"{self.host}:{self.ready['registry']}"

    @property
    def ca_file(self) -> Path:
        return self.data_dir / "ca.pem"

    @property
    def connection_string(self) -> str:
        """The service's."""
        return (self.data_dir / "connection-string").read_text().strip()

    def device_connection_string(
        self, device_id: str, module_id: str | None = None, key: str | None = None
    ) -> str:
        """As `azure-iot-device` takes it: no port."""
        registry = self.registry_manager()
        identity = registry.get_module(device_id, module_id) if module_id else registry.get_device(device_id)
        module = f";ModuleId={module_id}" if module_id else ""
        secret = key or identity.authentication.symmetric_key.primary_key
        return f"HostName={self.host};DeviceId={device_id}{module};SharedAccessKey={secret}"

    # Microsoft's SDKs.

    def registry_manager(self) -> Any:
        """An `IoTHubRegistryManager`."""
        from azure.iot.hub import IoTHubRegistryManager

        return self._trusting(IoTHubRegistryManager(self.connection_string))

    def configuration_manager(self) -> Any:
        """An `IoTHubConfigurationManager`: it holds `apply_configuration_on_edge_device`."""
        from azure.iot.hub import IoTHubConfigurationManager

        return self._trusting(IoTHubConfigurationManager(self.connection_string))

    def create_device(self, device_id: str, *, iot_edge: bool = False) -> Any:
        return self.registry_manager().create_device_with_sas(device_id, "", "", "enabled", iot_edge=iot_edge)

    @contextlib.contextmanager
    def device_client(self, device_id: str, **options: Any) -> Iterator[Any]:
        """A synchronous `IoTHubDeviceClient`, not yet connected; shut down at the end."""
        from azure.iot.device import IoTHubDeviceClient

        text = options.pop("connection_string", None) or self.device_connection_string(device_id)
        with self._shut_down(
            IoTHubDeviceClient.create_from_connection_string(text, **self._tls(options))
        ) as client:
            yield client

    @contextlib.contextmanager
    def module_client(self, device_id: str, module_id: str, **options: Any) -> Iterator[Any]:
        """A synchronous `IoTHubModuleClient`."""
        from azure.iot.device import IoTHubModuleClient

        text = options.pop("connection_string", None) or self.device_connection_string(device_id, module_id)
        with self._shut_down(
            IoTHubModuleClient.create_from_connection_string(text, **self._tls(options))
        ) as client:
            yield client

    def _trusting(self, manager: Any) -> Any:
        manager.protocol.config.connection.verify = str(self.ca_file)
        return manager

    def _tls(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"server_verification_cert": self.ca_file.read_text(), **options}

    @contextlib.contextmanager
    def _shut_down(self, client: Any) -> Iterator[Any]:
        try:
            yield client
        finally:
            client.shutdown()

    # Plain HTTP, for what no SDK of Microsoft's reaches.

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON of the answer; `token` is the owner's unless given."""
        import ssl

        from edge_contracts.sas import ConnectionString, make_sas

        owner = ConnectionString.parse(self.connection_string)
        token = token or make_sas(
            owner.resource_uri,
            owner.shared_access_key.reveal(),
            expiry=int(time.time()) + 600,
            policy=owner.shared_access_key_name,
        )
        request = urllib.request.Request(
            f"https://{owner.authority}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": token, "Content-Type": "application/json", **(headers or {})},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca_file))),
        )
        try:
            with opener.open(request, timeout=70) as answer:
                return answer.status, _json_of(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json_of(error.read())

    def telemetry(
        self, device: str | None = None, start: int = 1, wait_s: float = 0, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Messages of the hub's log from offset `start` on."""
        query = {"from": start, "limit": limit, "wait": wait_s, **({"device": device} if device else {})}
        status, page = self.request("GET", f"/edgewright/telemetry?{urllib.parse.urlencode(query)}")
        assert status == 200, page
        return list(page["messages"])


def _read_line(stream: IO[str]) -> str:
    """One line, or what came until the process ended or time was up."""
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(START_TIMEOUT_S) else ""


def _json_of(raw: bytes) -> Any:
    return json.loads(raw) if raw else None
