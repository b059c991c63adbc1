"""The hub's service side: identities, twins, deployments and methods, through Microsoft's SDK where it installs.

`azure-iot-hub` needs `uamqp`, which has wheels for x86-64 Linux only (DECISIONS N4); elsewhere the same calls go
straight to the service REST API. Both are one interface, `HubClient`, and one behavioural suite runs on both
(tests/contract/test_hub_client.py). Nothing else in the project imports `azure.iot.hub`.

    HubClientError
    ├── HubUnreachableError     no connection, or no answer in time (temporary)
    ├── HubRefusedError         the hub does not accept the connection string (401, 403)
    ├── HubNotFoundError        no such device, module or twin (404)
    ├── HubConflictError        exists already, or was changed meanwhile (409, 412)
    └── HubRequestRejectedError the hub says that the request is wrong (400, 413), or it failed itself (5xx)
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import urllib3

from edge_contracts.errors import PublishError
from edge_contracts.redact import Secret, redact_text
from edge_contracts.sas import ConnectionString, make_sas

if TYPE_CHECKING:
    from collections.abc import Iterator

API_VERSION = "2021-04-12"  # what azure-iot-hub 2.7 sends
TIMEOUT_S = 30.0
TOKEN_LIFE_S = 3600
LIST_LIMIT = 1000  # the service's own maximum for one call


class HubClientError(PublishError):
    """A call to the hub did not succeed; see the leaves."""

    code = "hub-client"


class HubUnreachableError(HubClientError):
    code = "hub-unreachable"
    temporary = True


class HubRefusedError(HubClientError):
    code = "hub-refused"


class HubNotFoundError(HubClientError):
    code = "hub-not-found"


class HubConflictError(HubClientError):
    code = "hub-conflict"


class HubRequestRejectedError(HubClientError):
    code = "hub-rejected"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A device as the hub knows it."""

    device_id: str
    enabled: bool
    is_edge: bool
    connected: bool
    primary_key: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class Twin:
    """A device's or module's twin; `desired` and `reported` hold `$version` and `$metadata` as the hub gives them."""

    device_id: str
    module_id: str | None
    tags: Mapping[str, Any]
    desired: Mapping[str, Any]
    reported: Mapping[str, Any]
    connected: bool

    @property
    def desired_version(self) -> int:
        return int(self.desired.get("$version", 0))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What a device answered to a direct method."""

    status: int
    payload: Any


class HubClient(Protocol):
    """What the publisher does at a hub. Every call ends within 30 s; errors are `HubClientError`s."""

    @property
    def host(self) -> str:
        """`host` or `host:port` of the hub."""
        ...

    def create_device(self, device_id: str, *, edge: bool) -> DeviceIdentity: ...

    def get_device(self, device_id: str) -> DeviceIdentity: ...

    def list_devices(self) -> list[DeviceIdentity]: ...

    def delete_device(self, device_id: str) -> None: ...

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin: ...

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin: ...

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        """Set an edge device's modules: `content` is a deployment manifest's `modulesContent` document."""

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult: ...


def connect(connection_string: str, *, ca_file: Path | None = None) -> HubClient:
    """The client that this machine can run: Microsoft's SDK if it is installed, plain REST otherwise.

    Raises:
        ContractError: the connection string is not one of a service.
    """
    if importlib.util.find_spec("azure.iot.hub") is not None:
        return SdkHubClient(connection_string, ca_file=ca_file)
    return RestHubClient(connection_string, ca_file=ca_file)


class SdkHubClient:
    """Through `azure-iot-hub`, unmodified."""

    def __init__(self, connection_string: str, *, ca_file: Path | None = None) -> None:
        # The SDK imports 40 MB of AMQP that most commands never need.
        from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager

        self.host = ConnectionString.parse(connection_string).authority
        self._registry = IoTHubRegistryManager.from_connection_string(connection_string)
        self._configurations = IoTHubConfigurationManager.from_connection_string(connection_string)
        for manager in (self._registry, self._configurations):
            connection = manager.protocol.config.connection
            connection.timeout = TIMEOUT_S
            if ca_file is not None:
                connection.verify = str(ca_file)
            # A refused connection is told at once; retrying is the user's decision, made with the message in view.
            manager.protocol.config.retry_policy.retries = 1

    def create_device(self, device_id: str, *, edge: bool) -> DeviceIdentity:
        with self._call(f"create device {device_id!r}"):
            keys = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
            return _device(
                self._registry.create_device_with_sas(device_id, *keys, "enabled", iot_edge=edge).serialize()
            )

    def get_device(self, device_id: str) -> DeviceIdentity:
        with self._call(f"get device {device_id!r}"):
            return _device(_full(self._registry.get_device(device_id)))

    def list_devices(self) -> list[DeviceIdentity]:
        with self._call("list devices"):
            return [_device(_full(device)) for device in self._registry.get_devices(LIST_LIMIT)]

    def delete_device(self, device_id: str) -> None:
        with self._call(f"delete device {device_id!r}"):
            self._registry.delete_device(device_id)

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin:
        with self._call(f"get twin of {_name(device_id, module_id)}"):
            if module_id is None:
                return _twin(_full(self._registry.get_twin(device_id)))
            return _twin(_full(self._registry.get_module_twin(device_id, module_id)))

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin:
        from azure.iot.hub.models import Twin as SdkTwin

        with self._call(f"tag device {device_id!r}"):
            return _twin(_full(self._registry.update_twin(device_id, SdkTwin(tags=dict(tags)), "*")))

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        from azure.iot.hub.models import ConfigurationContent

        with self._call(f"apply a deployment to device {device_id!r}"):
            body = ConfigurationContent(modules_content=content["modulesContent"])
            self._configurations.apply_configuration_on_edge_device(device_id, body)

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult:
        from azure.iot.hub.models import CloudToDeviceMethod

        with self._call(f"call {name!r} on {_name(device_id, module_id)}"):
            method = CloudToDeviceMethod(
                method_name=name, payload=payload, response_timeout_in_seconds=timeout_s
            )
            if module_id is None:
                result = self._registry.invoke_device_method(device_id, method)
            else:
                result = self._registry.invoke_device_module_method(device_id, module_id, method)
            return MethodResult(result.status, result.payload)

    @contextmanager
    def _call(self, what: str) -> Iterator[None]:
        """Translate what the SDK and its HTTP layer raise."""
        from msrest.exceptions import ClientRequestError, HttpOperationError
        from requests.exceptions import RequestException

        try:
            yield
        except HttpOperationError as error:
            response = error.response
            raise _status_error(self.host, what, response.status_code, response.text) from error
        except (ClientRequestError, RequestException) as error:
            raise _unreachable(self.host, error) from error


class RestHubClient:
    """The same calls on the service REST API: for machines without wheels of `uamqp`."""

    def __init__(self, connection_string: str, *, ca_file: Path | None = None) -> None:
        self._identity = ConnectionString.parse(connection_string)
        self.host = self._identity.authority
        self._pool = urllib3.PoolManager(
            cert_reqs="CERT_REQUIRED",
            ca_certs=None if ca_file is None else str(ca_file),
            timeout=urllib3.Timeout(connect=10, read=TIMEOUT_S),
            retries=False,
        )

    def create_device(self, device_id: str, *, edge: bool) -> DeviceIdentity:
        keys = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
        body = {
            "deviceId": device_id,
            "status": "enabled",
            "authentication": {
                "type": "sas",
                "symmetricKey": {"primaryKey": keys[0], "secondaryKey": keys[1]},
            },
            "capabilities": {"iotEdge": edge},
        }
        path = f"/devices/{quote(device_id, safe='')}"
        return _device(self._request(f"create device {device_id!r}", "PUT", path, body))

    def get_device(self, device_id: str) -> DeviceIdentity:
        path = f"/devices/{quote(device_id, safe='')}"
        return _device(self._request(f"get device {device_id!r}", "GET", path))

    def list_devices(self) -> list[DeviceIdentity]:
        rows = self._request("list devices", "GET", f"/devices?top={LIST_LIMIT}")
        return [_device(row) for row in rows]

    def delete_device(self, device_id: str) -> None:
        path = f"/devices/{quote(device_id, safe='')}"
        self._request(f"delete device {device_id!r}", "DELETE", path, if_match='"*"')

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin:
        what = f"get twin of {_name(device_id, module_id)}"
        return _twin(self._request(what, "GET", _twin_path(device_id, module_id)))

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin:
        path = _twin_path(device_id, None)
        body = {"tags": dict(tags)}
        return _twin(self._request(f"tag device {device_id!r}", "PATCH", path, body, if_match='"*"'))

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        path = f"/devices/{quote(device_id, safe='')}/applyConfigurationContent"
        body = {"modulesContent": content["modulesContent"]}
        self._request(f"apply a deployment to device {device_id!r}", "POST", path, body)

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult:
        body = {"methodName": name, "payload": payload, "responseTimeoutInSeconds": timeout_s}
        path = _twin_path(device_id, module_id) + "/methods"
        answer = self._request(f"call {name!r} on {_name(device_id, module_id)}", "POST", path, body)
        return MethodResult(answer["status"], answer.get("payload"))

    def _request(
        self, what: str, method: str, path: str, body: object = None, *, if_match: str | None = None
    ) -> Any:
        separator = "&" if "?" in path else "?"
        url = f"https://{self.host}{path}{separator}api-version={API_VERSION}"
        headers = {"Authorization": service_token(self._identity), "Content-Type": "application/json"}
        if if_match is not None:
            headers["If-Match"] = if_match
        try:
            response = self._pool.request(
                method, url, body=None if body is None else json.dumps(body), headers=headers
            )
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(self.host, error) from error
        if response.status >= 300:
            raise _status_error(self.host, what, response.status, response.data.decode(errors="replace"))
        return response.json() if response.data else None


def service_token(identity: ConnectionString, *, now: Callable[[], float] = time.time) -> str:
    """A SAS token for the whole hub, good for an hour."""
    return make_sas(
        identity.authority,
        identity.shared_access_key.reveal(),
        expiry=int(now()) + TOKEN_LIFE_S,
        policy=identity.shared_access_key_name,
    )


def _name(device_id: str, module_id: str | None) -> str:
    return f"device {device_id!r}" if module_id is None else f"module '{device_id}/{module_id}'"


def _twin_path(device_id: str, module_id: str | None) -> str:
    device = f"/twins/{quote(device_id, safe='')}"
    return device if module_id is None else f"{device}/modules/{quote(module_id, safe='')}"


def _full(model: Any) -> dict[str, Any]:
    """An SDK model as the JSON it came from, read-only fields included."""
    document: dict[str, Any] = model.serialize(keep_readonly=True)
    return document


def _device(row: Mapping[str, Any]) -> DeviceIdentity:
    keys = (row.get("authentication") or {}).get("symmetricKey") or {}
    return DeviceIdentity(
        device_id=row["deviceId"],
        enabled=row.get("status") == "enabled",
        is_edge=bool((row.get("capabilities") or {}).get("iotEdge")),
        connected=row.get("connectionState") == "Connected",
        primary_key=Secret(keys.get("primaryKey") or ""),
    )


def _twin(row: Mapping[str, Any]) -> Twin:
    properties = row.get("properties") or {}
    return Twin(
        device_id=row["deviceId"],
        module_id=row.get("moduleId"),
        tags=row.get("tags") or {},
        desired=properties.get("desired") or {},
        reported=properties.get("reported") or {},
        connected=row.get("connectionState") == "Connected",
    )


_STATUS_ERRORS: Mapping[int, type[HubClientError]] = {
    401: HubRefusedError,
    403: HubRefusedError,
    404: HubNotFoundError,
    409: HubConflictError,
    412: HubConflictError,
}


def _status_error(host: str, what: str, status: int, body: str) -> HubClientError:
    kind = _STATUS_ERRORS.get(status, HubRequestRejectedError)
    return kind(
        f"hub {host} refused to {what}: {status} {_reason(body)}",
        where=host,
        temporary=status == 429 or status >= 500,
        next_command="edgewright hub status" if kind is HubRefusedError else None,
    )


def _reason(body: str) -> str:
    """The hub's own words: `Message` of its error body, whose first part is `ErrorCode:Name;`."""
    try:
        document = json.loads(body)
        text = str(document.get("Message") or document.get("errorMessage") or body)
    except (ValueError, AttributeError):
        text = body
    return redact_text(re.sub(r"\s+", " ", text).strip()[:500]) or "without a reason"


def _unreachable(host: str, error: BaseException) -> HubUnreachableError:
    reason: BaseException = error
    while True:  # the cause deepest inside says what happened: refused, timed out, certificate
        inner = reason.__cause__ or getattr(reason, "reason", None) or reason.__context__
        if not isinstance(inner, BaseException) or inner is reason:
            break
        reason = inner
    return HubUnreachableError(
        f"hub {host} cannot be reached: {redact_text(str(reason)) or type(reason).__name__}",
        where=host,
        next_command="edgewright hub status",
    )
