"""The connection upstream: the only module that imports azure-iot-device.

Rules:

1. One SDK client per identity, because an MQTT connection is one identity (DECISIONS A2).
2. A client lives for one connection. The SDK's own reconnecting is off: it gives no say in when to try, and it hides
   that the full twin must be fetched again. Only its token renewal (a disconnect and connect of its own) is waited
   for.
3. Calls of the SDK block, some without a limit: each runs in a thread of its own with one.
4. The SDK's exceptions become three: unreachable, unauthorized, and refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device import Message as SdkMessage
from azure.iot.device import exceptions as sdk

from edge_agent.background import in_thread
from edge_contracts.errors import AgentError
from edge_contracts.messages import Message
from edge_contracts.sas import ConnectionString

CONNECT_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
RENEWAL_GRACE_S = 5.0
"""How long a disconnect may last before it counts: the SDK renews its token by disconnecting and connecting."""

IDLE_CLOSE_S = 600.0
PENDING_EVENTS = 256

log = logging.getLogger("edge_agent.hub")
# The SDK logs tracebacks of failures that reach us as exceptions anyway.
logging.getLogger("azure").setLevel(logging.CRITICAL)


class HubLinkError(AgentError):
    """The hub cannot be used now."""

    code = "hub-unreachable"
    temporary = True


class HubUnauthorizedError(HubLinkError):
    """The hub does not accept this identity's key."""

    code = "hub-unauthorized"


class HubRefusedError(HubLinkError):
    """The hub answered, but not what was asked for."""

    code = "hub-refused"


@dataclass(frozen=True, slots=True)
class Twin:
    """An identity's twin as the hub sent it; `$version` is taken out of `desired`."""

    desired: dict[str, Any]
    version: int
    reported: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DesiredPatch:
    """A change of the desired properties, leading to `version`."""

    values: dict[str, Any]
    version: int


class Resync:
    """The connection was renewed, or events were lost: fetch the full twin."""


class Closed:
    """The connection is gone."""


LinkEvent = DesiredPatch | Resync | Closed


class HubLink(Protocol):
    """One identity's connection to the hub, from `open` to `close`."""

    async def open(self) -> None:
        """Connect and subscribe.

        Raises:
            HubLinkError: and nothing is left behind once `close` was called.
        """

    async def twin(self) -> Twin:
        """The full twin."""

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge `patch` into the reported properties; returns when the hub has it."""

    async def next_event(self) -> LinkEvent:
        """The next thing that happened; after `Closed` the link is of no more use."""

    async def close(self) -> None:
        """Disconnect and free everything; never raises."""


class Connector(Protocol):
    """Makes links."""

    def link(self, module: str) -> HubLink:
        """A link, not yet open, for one of the device's module identities."""


@dataclass(frozen=True, slots=True)
class SdkConnector:
    """Links through azure-iot-device."""

    connection: ConnectionString
    ca_file: Path | None
    key_of: Callable[[str], str | None]

    def link(self, module: str) -> SdkLink:
        """A link, not yet open, for a module identity."""
        return SdkLink(module, lambda: self.client(module))

    def client(self, module: str | None) -> IoTHubModuleClient | IoTHubDeviceClient:
        """An SDK client for a module identity, or for the device itself.

        Raises:
            HubUnauthorizedError: this device has no key for the module yet.
        """
        options: dict[str, Any] = {
            "server_verification_cert": self.ca_file.read_text() if self.ca_file else None,
            "auto_connect": False,
            "connection_retry": False,
            "ensure_desired_properties": False,
            "product_info": "edgewright",
        }
        if self.ca_file is None:
            del options["server_verification_cert"]
        kind = IoTHubModuleClient if module else IoTHubDeviceClient
        return kind.create_from_connection_string(self._connection_string(module), **options)

    def _connection_string(self, module: str | None) -> str:
        key = self.key_of(module) if module else self.connection.shared_access_key.reveal()
        if key is None:
            raise HubUnauthorizedError(f"module {module} has no identity at the hub yet", where=module)
        parts = [f"HostName={self.connection.host_name}", f"DeviceId={self.connection.device_id}"]
        parts += [f"ModuleId={module}"] if module else []
        parts += [f"SharedAccessKey={key}"]
        gateway = self.connection.gateway_host_name
        return ";".join(parts + ([f"GatewayHostName={gateway}"] if gateway else []))


class SdkLink:
    """A `HubLink` over one `IoTHubModuleClient`."""

    def __init__(self, name: str, make_client: Callable[[], Any]) -> None:
        self._name = name
        self._make_client = make_client
        self._client: Any = None
        self._events: asyncio.Queue[LinkEvent | bool] = asyncio.Queue(PENDING_EVENTS)
        self._lost_events = False
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        self._client = await _call(self._name, CALL_TIMEOUT_S, self._make_client)
        self._client.on_background_exception = self._on_background_exception
        await _call(self._name, CONNECT_TIMEOUT_S, self._client.connect)
        await _call(self._name, CALL_TIMEOUT_S, self._subscribe)

    async def twin(self) -> Twin:
        document = await _call(self._name, CALL_TIMEOUT_S, self._client.get_twin)
        desired = dict(document.get("desired") or {})
        reported = {
            key: value for key, value in (document.get("reported") or {}).items() if key != "$version"
        }
        return Twin(desired, int(desired.pop("$version", 0)), reported)

    async def report(self, patch: dict[str, Any]) -> None:
        await _call(self._name, CALL_TIMEOUT_S, self._client.patch_twin_reported_properties, patch)

    async def next_event(self) -> LinkEvent:
        if self._lost_events:
            self._lost_events = False
            return Resync()
        event = await self._events.get()
        return await self._after_state_change(event) if isinstance(event, bool) else event

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _shut_down(client)

    async def _after_state_change(self, connected: bool) -> LinkEvent:
        if connected or self._client.connected:
            return Resync()
        deadline = time.monotonic() + RENEWAL_GRACE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(0.25)
            if self._client.connected:
                return Resync()
        return Closed()

    def _subscribe(self) -> None:
        self._client.on_twin_desired_properties_patch_received = self._on_patch
        self._client.on_connection_state_change = self._on_state_change

    def _on_patch(self, patch: dict[str, Any]) -> None:
        values = dict(patch)
        event = DesiredPatch(values, int(values.pop("$version", 0)))
        self._loop.call_soon_threadsafe(self._put, event)

    def _on_state_change(self) -> None:
        client = self._client
        self._loop.call_soon_threadsafe(self._put, bool(client is not None and client.connected))

    def _on_background_exception(self, error: Exception) -> None:
        log.info("%s: the device SDK reports %s", self._name, type(error).__name__)

    def _put(self, event: LinkEvent | bool) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self._lost_events = True


@dataclass(slots=True)
class _Upstream:
    client: Any
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SdkSender:
    """Sends messages upstream, each under the identity it comes from: one client per identity, made when needed."""

    def __init__(self, connector: SdkConnector, renew: Callable[[str], object]) -> None:
        """`renew` sets a module's key at the hub again, which may have lost it; blocking."""
        self._connector = connector
        self._renew = renew
        self._upstreams: dict[str, _Upstream] = {}

    async def send(self, module_id: str | None, message: Message) -> None:
        """Send `message` and return when the hub has acknowledged it.

        Args:
            module_id: the sending module; None or empty for the device itself.

        Raises:
            HubLinkError: it was not acknowledged; the hub may still have it.
        """
        name = module_id or ""
        upstream = self._upstreams.setdefault(name, _Upstream(None, time.monotonic()))
        async with upstream.lock:
            upstream.used_at = time.monotonic()
            try:
                await self._connected(name, upstream)
                await _call(
                    name or "device", CALL_TIMEOUT_S, upstream.client.send_message, _sdk_message(message)
                )
            except HubLinkError as error:
                await self._drop(upstream)
                if isinstance(error, HubUnauthorizedError) and name:
                    await in_thread(CALL_TIMEOUT_S, self._renew, name)
                raise

    async def close_idle(self, idle_s: float = IDLE_CLOSE_S) -> None:
        """Close connections that sent nothing for `idle_s` seconds."""
        now = time.monotonic()
        for name, upstream in list(self._upstreams.items()):
            if now - upstream.used_at >= idle_s and not upstream.lock.locked():
                del self._upstreams[name]
                await self._drop(upstream)

    async def close(self) -> None:
        """Close every connection."""
        await self.close_idle(-1.0)

    async def _connected(self, name: str, upstream: _Upstream) -> None:
        if upstream.client is not None and upstream.client.connected:
            return
        await self._drop(upstream)
        upstream.client = await _call(name, CALL_TIMEOUT_S, self._connector.client, name or None)
        await _call(name or "device", CONNECT_TIMEOUT_S, upstream.client.connect)

    async def _drop(self, upstream: _Upstream) -> None:
        client, upstream.client = upstream.client, None
        if client is not None:
            await _shut_down(client)


def _sdk_message(message: Message) -> SdkMessage:
    converted = SdkMessage(
        message.body,
        message_id=message.message_id,
        content_encoding=message.content_encoding,
        content_type=message.content_type,
        output_name=message.output_name,
    )
    converted.correlation_id = message.correlation_id
    converted.user_id = message.user_id
    converted.custom_properties = dict(message.properties)
    return converted


async def _call(name: str, timeout_s: float, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return await in_thread(timeout_s, function, *args)
    except HubLinkError:
        raise
    except TimeoutError as error:
        raise HubLinkError(f"{name}: the hub did not answer within {timeout_s:g} s", where=name) from error
    except sdk.CredentialError as error:
        raise HubUnauthorizedError(
            f"{name}: the hub does not accept this identity's key", where=name
        ) from error
    except sdk.ServiceError as error:
        raise HubRefusedError(f"{name}: the hub refused: {error}", where=name) from error
    except (sdk.ClientError, sdk.OperationCancelled, sdk.OperationTimeout, OSError, ValueError) as error:
        raise HubLinkError(f"{name}: {_explain(error)}", where=name) from error


def _explain(error: BaseException) -> str:
    """The innermost cause, which alone says what happened: the SDK wraps it two or three times."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{error} ({type(cause).__name__}: {cause})" if cause is not error else str(error)


async def _shut_down(client: Any) -> None:
    try:
        await in_thread(CLOSE_TIMEOUT_S, client.shutdown)
    except Exception as error:
        log.debug("closing a connection: %s", type(error).__name__)
