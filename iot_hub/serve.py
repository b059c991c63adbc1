"""The hub as one process: MQTT, HTTPS and the registry on one event loop, over one data folder.

The folder holds `hub.db`, `pki/`, `registry/` and what clients need: `ca.pem`, `ca-bundle.pem` (public authorities and ours),
`connection-string` and `env` (to be sourced by a shell). Files have mode 0600. One hub at a time uses a folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import secrets
import shlex
import signal
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import uvicorn
from starlette.applications import Starlette

from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString
from iot_hub.authentication import Authenticator
from iot_hub.core import HubCore
from iot_hub.errors import HubStartError
from iot_hub.hub import Hub, utc_now
from iot_hub.identities import IdentityKey
from iot_hub.methods import MethodCalls
from iot_hub.mqtt_handler import HubMqttHandler
from iot_hub.mqtt_server import Connection, MqttServer, server_ssl_context
from iot_hub.pki import PkiFiles, ensure_pki
from iot_hub.policies import OWNER_POLICY, SharedAccessPolicy
from iot_hub.presence import Presence
from iot_hub.registry import make_registry
from iot_hub.registry_access import RegistryAccess
from iot_hub.rest import HubApi
from iot_hub.store import HubStore
from iot_hub.telemetry_log import Retention, TelemetryLog

# SIGTERM must end the process within 10 s: requests get 5, everything together 9.
REQUEST_DRAIN_S = 5
STOP_TIMEOUT_S = 9.0
# Requests and idle connections of one server at a time; beyond it a client gets 503. Long polls count.
CONCURRENT_REQUESTS = 2000
_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Where a hub listens and keeps its data; port 0 takes a free one."""

    data_dir: Path
    host: str = "127.0.0.1"
    mqtt_port: int = 8883
    https_port: int = 8443
    registry_port: int = 5050
    san: tuple[str, ...] = ()
    retention: Retention = field(default_factory=Retention)

    @property
    def public_name(self) -> str:
        """The name that clients are told."""
        if self.host not in _WILDCARDS:
            return self.host
        return self.san[0] if self.san else socket.gethostname()

    @property
    def registry_is_plain(self) -> bool:
        """Plain HTTP is for loopback alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class HubServer:
    """Starts and stops everything of one hub.

    Attributes:
        mqtt_port, https_port, registry_port: the bound ports once `start` has returned.
    """

    def __init__(self, config: HubConfig) -> None:
        self._config = config
        self.mqtt_port = config.mqtt_port
        self.https_port = config.https_port
        self.registry_port = config.registry_port
        self._closing = contextlib.ExitStack()
        self._mqtt: MqttServer | None = None
        self._telemetry: TelemetryLog | None = None
        self._http: list[_HttpServer] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen on all three ports; on failure nothing is left running.

        Raises:
            HubStartError: a port or the data folder cannot be used.
            MqttListenError: the MQTT port was taken at the last moment.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Answer what is in flight, make telemetry durable, close; takes at most about 9 s."""
        if self._telemetry is not None:
            self._telemetry.release_readers()
        for server in self._http:
            server.should_exit = True
        ending = [*self._tasks, *([asyncio.ensure_future(self._mqtt.stop())] if self._mqtt else [])]
        if ending:
            _, late = await asyncio.wait(ending, timeout=STOP_TIMEOUT_S)
            for task in late:
                task.cancel()
        if self._telemetry is not None:
            await self._telemetry.stop()
        self._closing.close()

    async def failed(self) -> None:
        """Return if a server ends by itself, which none should."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _start(self) -> None:
        config = self._config
        # All ports first: a hub that cannot listen must not touch its folder.
        https = self._bind("HTTPS", config.https_port, "--https-port")
        registry = self._bind("the registry", config.registry_port, "--registry-port")
        _listen("MQTT", config.host, config.mqtt_port, "--mqtt-port").close()
        self.https_port, self.registry_port = https.getsockname()[1], registry.getsockname()[1]
        with _start_errors(config.data_dir):
            self._lock_folder()
            pki = ensure_pki(config.data_dir / "pki", [config.public_name, *config.san])
        store = HubStore(config.data_dir / "hub.db")
        self._closing.callback(store.close)
        policies = store.policies(_new_key)
        await self._start_services(store, policies, pki, https, registry)
        with _start_errors(config.data_dir):
            self._write_client_files(pki, policies[OWNER_POLICY])

    async def _start_services(
        self,
        store: HubStore,
        policies: dict[str, SharedAccessPolicy],
        pki: PkiFiles,
        *sockets: socket.socket,
    ) -> None:
        config = self._config
        writer, reader = self._thread("hub-writer"), self._thread("hub-reader")
        core = HubCore(now=utc_now, random_bytes=os.urandom)
        core.apply(store.load())
        hub = Hub(core, store, writer, Presence(utc_now))
        authenticator = Authenticator(core, policies, _seconds)
        telemetry = self._telemetry = TelemetryLog(store, writer, reader, config.retention)
        access = RegistryAccess(hub, store, authenticator, _seconds)
        access.load(store.registry_credentials())

        def connection_of(key: IdentityKey) -> Connection | None:
            return mqtt.connection(str(key))

        methods = MethodCalls(connection_of)
        handler = HubMqttHandler(hub, store, authenticator, telemetry, methods)
        tls = server_ssl_context(pki.server_cert, pki.server_key)
        mqtt = MqttServer(handler, host=config.host, port=config.mqtt_port, ssl_context=tls)
        hub.connections = mqtt
        api = HubApi(
            hub,
            authenticator,
            methods,
            telemetry,
            registry=access,
            registry_address=f"{config.public_name}:{self.registry_port}",
        )
        telemetry.start()
        await mqtt.start()
        self._mqtt, self.mqtt_port = mqtt, mqtt.port
        registry = make_registry(config.data_dir / "registry", access)
        registry_pki = None if config.registry_is_plain else pki
        for app, listener, files in zip((api.app(), registry), sockets, (pki, registry_pki), strict=True):
            await self._serve_http(app, listener, files)

    async def _serve_http(self, app: Starlette, listener: socket.socket, pki: PkiFiles | None) -> None:
        server = _HttpServer(_http_config(app, pki))
        self._http.append(server)
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        self._tasks.append(task)
        while not server.started and not task.done():
            await asyncio.sleep(0.005)

    def _bind(self, what: str, port: int, flag: str) -> socket.socket:
        return self._closing.enter_context(_listen(what, self._config.host, port, flag))

    def _thread(self, name: str) -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closing.callback(executor.shutdown)
        return executor

    def _lock_folder(self) -> None:
        folder = self._config.data_dir
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._closing.enter_context(open(folder / "lock", "a", opener=_private))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HubStartError(
                f"data folder {folder} is in use by another hub; choose another with --data",
                where=str(folder),
            ) from error

    def _write_client_files(self, pki: PkiFiles, owner: SharedAccessPolicy) -> None:
        folder = self._config.data_dir.absolute()
        own_ca = pki.ca_cert.read_text()
        connection = ConnectionString(
            host_name=self._config.public_name,
            port=self.https_port,
            shared_access_key_name=owner.name,
            shared_access_key=owner.primary_key,
        )
        bundle = shlex.quote(str(folder / "ca-bundle.pem"))
        _write_private(folder / "ca.pem", own_ca)
        _write_private(folder / "ca-bundle.pem", f"{Path(certifi.where()).read_text().rstrip()}\n{own_ca}")
        _write_private(folder / "connection-string", connection.format() + "\n")
        _write_private(folder / "env", f"export SSL_CERT_FILE={bundle}\nexport REQUESTS_CA_BUNDLE={bundle}\n")


async def serve(config: HubConfig, on_ready: Callable[[HubServer], None]) -> None:
    """Run a hub until SIGTERM or SIGINT.

    Raises:
        HubStartError: it cannot start, or one of its servers ended.
    """
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    server = HubServer(config)
    await server.start()
    try:
        on_ready(server)
        ends = [asyncio.ensure_future(asked_to_stop.wait()), asyncio.ensure_future(server.failed())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if not asked_to_stop.is_set():
            raise HubStartError("a server of the hub ended by itself; the log holds the reason")
    finally:
        await server.stop()


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's, which runs two of these and MQTT."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cutter = asyncio.ensure_future(self._cut_idle())
        try:
            await super().shutdown(sockets)
        finally:
            cutter.cancel()

    async def _cut_idle(self) -> None:
        """Clients keep connections they do not use and do not read; TLS would wait for their farewell."""
        while True:
            await asyncio.sleep(0.02)
            if self.server_state.tasks:
                continue
            for connection in list(self.server_state.connections):
                transport = connection.transport
                if transport.get_write_buffer_size() == 0:
                    transport.abort()


def _http_config(app: Starlette, pki: PkiFiles | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=REQUEST_DRAIN_S,
        limit_concurrency=CONCURRENT_REQUESTS,
        ssl_certfile=str(pki.server_cert) if pki else None,
        ssl_keyfile=str(pki.server_key) if pki else None,
    )


def _listen(what: str, host: str, port: int, flag: str) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
        # asyncio sets it only on sockets that it makes itself; without it every second answer waits 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise HubStartError(
            f"cannot listen for {what} on {host}:{port}: {_reason(error)}; "
            f"choose another port with {flag}, or another address with --host",
            where=f"{host}:{port}",
        ) from error


@contextlib.contextmanager
def _start_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HubStartError(
            f"cannot use the data folder {folder}: {error.strerror or error}", where=str(folder)
        ) from error
    except ValueError as error:
        raise HubStartError(f"cannot make the server's certificate: {error}; see --host and --san") from error


def _reason(error: OSError) -> str:
    # create_server appends the address to strerror; getaddrinfo's error numbers are not errno's.
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror or error)
    return os.strerror(error.errno)


def _write_private(path: Path, text: str) -> None:
    """Replace a file whole; only its owner may read it at any time."""
    scratch = path.with_name(f"{path.name}.new")
    with open(scratch, "w", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _new_key() -> Secret:
    return Secret(b64encode(secrets.token_bytes(32)).decode())


def _seconds() -> float:
    return utc_now().timestamp()
