"""The device's edge hub: modules talk to it as to an IoT Hub, routes carry their messages, the disk keeps them.

    module ──MQTT/TLS──► sessions ──► router ──► store ──► pumps ──► upstream (a sender)  or  a module's input
    module ──Unix socket──► workload API

One object is the whole of it; the agent starts it, gives it routes and modules, and asks it for numbers. The store
is touched from one thread of its own, so a slow disk never holds up the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from edge_agent.edge_hub.delivery import Pump
from edge_agent.edge_hub.router import UPSTREAM, Delivery, Router, input_endpoint, parse_input_endpoint
from edge_agent.edge_hub.sessions import ModuleSessions
from edge_agent.edge_hub.store import MessageStore, StoredMessage
from edge_agent.edge_hub.workload import API_VERSION, SOCKET_NAME, WorkloadApi
from edge_contracts.errors import AgentError
from edge_contracts.messages import Message, encode_property_bag
from edge_contracts.routes import Route
from edge_contracts.topics import InputTopic
from iot_hub.mqtt_server import Identity, MqttDeliveryError, MqttServer, server_ssl_context

log = logging.getLogger(__name__)

# Where the runtime mounts a module's workload folder inside its sandbox.
WORKLOAD_MOUNT = "/run/edgewright"
CERTIFICATE_TIMEOUT_S = 30.0
RENEWAL_CHECK_S = 86_400.0
INPUT_ACK_TIMEOUT_S = 30.0  # the edge hub's own limit for an endpoint's acknowledgement
CLOSE_TIMEOUT_S = 5.0


class Sender(Protocol):
    """The way upstream."""

    async def send(self, module_id: str | None, message: Message) -> None:
        """Send in a module's name (None: the device's own); returns when the hub has acknowledged, else raises."""


class CertificateError(AgentError):
    """The helper process could not make the device's certificates."""

    code = "edge-certificates"


@dataclass(frozen=True, slots=True)
class EdgeHubConfig:
    """Where the edge hub listens and keeps its files; `hub_host_name` is what modules' tokens are for."""

    host: str
    hub_host_name: str
    device_id: str
    state_dir: Path
    port: int = 8883
    store_max_bytes: int = 50 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EdgeHubStats:
    """Numbers since the start; `waiting` is what the store holds now, by endpoint."""

    received: int
    delivered: dict[str, int]
    waiting: dict[str, int]
    dropped: dict[str, int]
    store_bytes: int
    connected: tuple[str, ...]


class EdgeHub:
    """See the module's docstring. `key_of` gives a module's symmetric key (base64), or None when it has none."""

    def __init__(self, config: EdgeHubConfig, key_of: Callable[[str], str | None], sender: Sender) -> None:
        self._config = config
        self._sender = sender
        self._router = Router((), -1)
        self._pumps: dict[str, Pump] = {}
        self._counts: Counter[str] = Counter()
        self._store: MessageStore | None = None
        self._store_thread: ThreadPoolExecutor | None = None
        self._server: MqttServer | None = None
        self._tls: ssl.SSLContext | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._sessions = ModuleSessions(
            hub_host_name=config.hub_host_name,
            device_id=config.device_id,
            key_of=key_of,
            accept=self._accept,
            changed=self._module_changed,
        )
        self._workload = WorkloadApi(config.state_dir / "workload", key_of, self._trust_bundle)

    async def start(self) -> None:
        """Make certificates where needed, open the store, listen, and go on with what waits.

        Raises:
            CertificateError, OSError, HubError: it cannot listen or has no certificates; nothing stays open, and it
                may be started again.
        """
        await self._make_certificates()
        folder = self._certificate_folder
        self._tls = server_ssl_context(folder / "server.pem", folder / "server.key")
        self._store_thread = ThreadPoolExecutor(1, "edge-hub-store")
        path = self._config.state_dir / "messages.db"
        self._store = await self._in_store_thread(partial(MessageStore, path, self._config.store_max_bytes))
        server = MqttServer(
            self._sessions, host=self._config.host, port=self._config.port, ssl_context=self._tls
        )
        try:
            await server.start()
        except BaseException:
            await self._close_store()
            raise
        self._server = server
        for endpoint in await self._in_store_thread(self._store.endpoints):
            self._pump(endpoint)
        self._renewal = asyncio.create_task(self._renew_certificates())

    async def stop(self) -> None:
        """Stop listening and delivering; what waits stays on disk."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await asyncio.gather(*(pump.stop() for pump in self._pumps.values()))
        self._pumps.clear()
        if self._server is not None:
            await self._server.stop()
        await self._workload.stop()
        await self._close_store()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._config.port if self._server is None else self._server.port

    def set_routes(self, routes: Sequence[Route], default_ttl_s: int) -> None:
        """Use these routes for messages from now on; what waits keeps where it was going."""
        self._router = Router(routes, default_ttl_s)

    def module_environment(self, module: str) -> dict[str, str]:
        """What a module finds in its environment, by the names that Azure's SDKs read."""
        return {
            "IOTEDGE_IOTHUBHOSTNAME": self._config.hub_host_name,
            "IOTEDGE_GATEWAYHOSTNAME": self._config.host,
            "IOTEDGE_DEVICEID": self._config.device_id,
            "IOTEDGE_MODULEID": module,
            "IOTEDGE_MODULEGENERATIONID": "1",
            "IOTEDGE_WORKLOADURI": f"unix://{WORKLOAD_MOUNT}/{SOCKET_NAME}",
            "IOTEDGE_APIVERSION": API_VERSION,
            "IOTEDGE_AUTHSCHEME": "sasToken",
        }

    async def ensure_module(self, module: str) -> Path:
        """Serve the module's workload socket; returns the folder to mount at `WORKLOAD_MOUNT`."""
        return await self._workload.ensure(module)

    async def remove_module(self, module: str) -> None:
        """Disconnect the module and take its workload socket away; its waiting messages stay."""
        await self._workload.remove(module)
        if self._server is not None:
            identity = Identity(self._config.device_id, module)
            self._server.disconnect(identity)
            self._server.forget(identity)

    async def publish_local(self, message: Message) -> int:
        """Take a message of the device itself (routes see it under `/messages/*`); returns to how many it goes."""
        return await self._accept(replace(message, connection_device_id=self._config.device_id))

    async def send_input(self, module: str, input_name: str, message: Message) -> None:
        """Give a message to a module's input, past the routes; it waits when the module is away."""
        await self._keep(message, (Delivery(input_endpoint(module, input_name), 0, None),))

    def upstream_changed(self) -> None:
        """The link upstream is back: deliver now, not at the end of a back-off."""
        if UPSTREAM in self._pumps:
            self._pumps[UPSTREAM].endpoint_changed()

    def connected_modules(self) -> tuple[str, ...]:
        if self._server is None:
            return ()
        return tuple(sorted(str(identity.module_id) for identity in self._server.connected_identities()))

    async def stats(self) -> EdgeHubStats:
        store = self._opened_store
        waiting, used = await self._in_store_thread(lambda: (store.counts(), store.used_bytes))
        return EdgeHubStats(
            received=self._counts["received"],
            delivered={endpoint: pump.delivered for endpoint, pump in self._pumps.items() if pump.delivered},
            waiting=waiting,
            dropped=dict(store.dropped + Counter({"no_route": self._counts["no_route"]})),
            store_bytes=used,
            connected=self.connected_modules(),
        )

    async def _accept(self, message: Message) -> int:
        """Route and keep a message; when this returns it is durable."""
        self._counts["received"] += 1
        if message.message_id is None:
            # Delivery is at least once: the id is what a receiver drops duplicates by.
            message = replace(message, message_id=str(uuid.uuid4()))
        deliveries = self._router.deliveries(message)
        if deliveries:
            await self._keep(message, deliveries)
        else:
            self._counts["no_route"] += 1
        return len(deliveries)

    async def _keep(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        await self._in_store_thread(partial(self._opened_store.append, message, deliveries))
        for delivery in deliveries:
            self._pump(delivery.endpoint).wake()

    def _pump(self, endpoint: str) -> Pump:
        pump = self._pumps.get(endpoint)
        if pump is None:
            send = self._send_upstream if endpoint == UPSTREAM else self._send_to_input
            pump = self._pumps[endpoint] = Pump(endpoint, self._fetch, self._remove, send)
        return pump

    async def _fetch(self, endpoint: str, limit: int) -> list[StoredMessage]:
        batch: list[StoredMessage] = await self._in_store_thread(
            partial(self._opened_store.next_batch, endpoint, limit)
        )
        return batch

    async def _remove(self, ids: Sequence[int]) -> None:
        await self._in_store_thread(partial(self._opened_store.remove, ids))

    async def _send_upstream(self, stored: StoredMessage) -> None:
        await self._sender.send(stored.message.connection_module_id, stored.message)

    async def _send_to_input(self, stored: StoredMessage) -> None:
        module, input_name = parse_input_endpoint(stored.endpoint)
        # Inside a module an output name would be its own; the sender's module says where it came from.
        message = replace(stored.message, output_name=None, input_name=input_name)
        topic = str(InputTopic(self._config.device_id, module, input_name, encode_property_bag(message)))
        identity = Identity(self._config.device_id, module)
        connection = None if self._server is None else self._server.connection(identity)
        if connection is None or not connection.is_subscribed(topic):
            raise MqttDeliveryError(f"module {module} is not listening on {input_name}")
        await connection.publish_acked(topic, message.body, timeout_s=INPUT_ACK_TIMEOUT_S)

    def _module_changed(self, module: str) -> None:
        for endpoint, pump in self._pumps.items():
            if endpoint != UPSTREAM and parse_input_endpoint(endpoint)[0] == module:
                pump.endpoint_changed()

    @property
    def _opened_store(self) -> MessageStore:
        if self._store is None:
            raise AgentError("the edge hub is not running", code="edge-hub-stopped", temporary=True)
        return self._store

    async def _in_store_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, call)

    async def _close_store(self) -> None:
        if self._store is not None:
            await self._in_store_thread(self._store.close)
            self._store = None
        if self._store_thread is not None:
            self._store_thread.shutdown(wait=False)
            self._store_thread = None

    @property
    def _certificate_folder(self) -> Path:
        return self._config.state_dir / "certificates"

    def _trust_bundle(self) -> str:
        return (self._certificate_folder / "edge-ca.pem").read_text(encoding="ascii")

    async def _make_certificates(self) -> None:
        helper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_agent.certificates",
            str(self._certificate_folder),
            self._config.host,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await asyncio.wait_for(helper.communicate(), CERTIFICATE_TIMEOUT_S)
        except BaseException:
            helper.kill()
            raise
        if helper.returncode:
            last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise CertificateError(f"certificates in {self._certificate_folder} could not be made: {last}")

    async def _renew_certificates(self) -> None:
        """Once a day; new connections get the new certificate, nothing is restarted."""
        while True:
            await asyncio.sleep(RENEWAL_CHECK_S)
            try:
                await self._make_certificates()
                folder = self._certificate_folder
                assert self._tls is not None
                self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
            except (AgentError, OSError, TimeoutError) as error:
                log.warning("certificates were not renewed, trying again tomorrow: %s", error)
