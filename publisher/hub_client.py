"""The hub's service side: identities, twins, deployments and methods, through Microsoft's SDK where it installs.

`azure-iot-hub` needs `uamqp`, which has wheels for x86-64 Linux only (DECISIONS N4); elsewhere the same calls go
straight to the service REST API. Both are one interface, `HubClient`, and one behavioural suite runs on both
(tests/contract/test_hub_client.py). Nothing else in the project imports `azure.iot.hub`.

    HubClientError                 also: an answer that is no hub's
    ├── HubUnreachableError        no connection, or no answer in time (temporary)
    ├── HubUntrustedError          its certificate is not of an authority that is trusted here
    ├── HubRefusedError            the hub does not accept the connection string (401, 403)
    ├── HubNotFoundError           no such device, module or twin (404)
    ├── HubDeviceOfflineError      the device is not connected, or does not listen for methods (temporary)
    ├── HubConflictError           exists already, or was changed meanwhile (409, 412)
    └── HubRequestRejectedError    the hub says that the request is wrong or too much, or it failed itself (5xx)
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

import urllib3

from edge_contracts.errors import ContractError, PublishError
from edge_contracts.redact import Secret, redact_text
from edge_contracts.sas import ConnectionString, make_sas
from publisher.signed_in import SignedIn, sign_in_error

if TYPE_CHECKING:
    from collections.abc import Iterator

API_VERSION = "2021-04-12"  # what azure-iot-hub 2.7 sends
CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 30.0
METHOD_MARGIN_S = 10.0  # the hub itself answers when a device has not; it must be heard doing so
TOKEN_LIFE_S = 3600
LIST_LIMIT = 1000  # the service's own maximum for one call


class HubClientError(PublishError):
    """A call to the hub did not succeed; see the leaves.

    Attributes:
        reason: the hub's own name for it, as `DeviceNotFound`; empty where it gave none.
    """

    code = "hub-client"
    reason: str = ""


class HubUnreachableError(HubClientError):
    code = "hub-unreachable"
    temporary = True


class HubUntrustedError(HubClientError):
    code = "hub-untrusted"


class HubRefusedError(HubClientError):
    code = "hub-refused"


class HubNotFoundError(HubClientError):
    code = "hub-not-found"


class HubDeviceOfflineError(HubClientError):
    code = "hub-device-offline"
    temporary = True


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


@dataclass(frozen=True, slots=True)
class Configuration:
    """An automatic deployment: a manifest for every edge device that a condition targets.

    Attributes:
        content: `{"modulesContent": …}`; a hub takes it once, when the configuration is created.
        etag: as the hub gave it; empty for one that is not there yet.
    """

    configuration_id: str
    target_condition: str
    priority: int
    content: Mapping[str, Any] = field(repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    metric_queries: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""

    def document(self) -> dict[str, Any]:
        """The body of the request that creates or updates it."""
        return {
            "id": self.configuration_id,
            "schemaVersion": "1.0",
            "labels": dict(self.labels),
            "content": dict(self.content),
            "targetCondition": self.target_condition,
            "priority": self.priority,
            "metrics": {"queries": dict(self.metric_queries)},
            **({"etag": self.etag} if self.etag else {}),
        }


class HubClient(Protocol):
    """What the publisher does at a hub. Errors are `HubClientError`s.

    Every call ends within 40 s, but for a method: 10 s after its own timeout. Nothing is tried twice.
    """

    @property
    def host(self) -> str:
        """`host` or `host:port` of the hub."""
        ...

    def create_device(self, device_id: str, *, edge: bool) -> DeviceIdentity: ...

    def get_device(self, device_id: str) -> DeviceIdentity: ...

    def list_devices(self) -> list[DeviceIdentity]: ...

    def find_devices(self, condition: str) -> list[DeviceIdentity]:
        """The first `LIST_LIMIT` devices whose twins fulfil a condition of the query language; without their keys."""

    def delete_device(self, device_id: str) -> None: ...

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin: ...

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin: ...

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        """Set an edge device's modules: `content` is a deployment manifest's `modulesContent` document."""

    def get_configuration(self, configuration_id: str) -> Configuration | None:
        """An automatic deployment, None if there is none of that id."""

    def put_configuration(self, configuration: Configuration) -> Configuration:
        """Create an automatic deployment, or, with an ETag, update all but the content of one that is unchanged since."""

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult: ...


def connect(access: str | SignedIn, *, ca_file: Path | None = None) -> HubClient:
    """The client that this machine can run: Microsoft's SDK if it is installed, plain REST otherwise.

    Args:
        access: a policy's connection string, or who is signed in.
        ca_file: the authority of a hub that has its own; the system's are trusted without.

    Raises:
        ContractError: the connection string is not one of a service.
    """
    try:
        return SdkHubClient(access, ca_file=ca_file)
    except ImportError:
        return RestHubClient(access, ca_file=ca_file)


def service_identity(connection_string: str, *, where: str = "hub connection string") -> ConnectionString:
    """Read the connection string of a hub's policy.

    Raises:
        ContractError: it is malformed, or a device's.
    """
    identity = ConnectionString.parse(connection_string, where=where)
    if identity.shared_access_key_name is None:
        raise ContractError(
            f"{where} must be a service's, with SharedAccessKeyName, not that of device {identity.device_id!r}",
            code="connection-string",
            where=where,
        )
    return identity


class SdkHubClient:
    """Through `azure-iot-hub`, unmodified.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, access: str | SignedIn, *, ca_file: Path | None = None) -> None:
        # The SDK imports 40 MB of AMQP that most commands never need.
        from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager

        if isinstance(access, SignedIn):
            self.host = access.host
            access.authorization()  # the SDK asks for a token here and now; asked first, a refusal is ours to word
            self._registry = IoTHubRegistryManager.from_token_credential(access.host, access.credential)
            self._configurations = IoTHubConfigurationManager.from_token_credential(
                access.host, access.credential
            )
        else:
            self.host = service_identity(access).authority
            self._registry = IoTHubRegistryManager.from_connection_string(access)
            self._configurations = IoTHubConfigurationManager.from_connection_string(access)
        for manager in (self._registry, self._configurations):
            config = manager.protocol.config
            config.connection.timeout = (CONNECT_TIMEOUT_S, TIMEOUT_S)
            if ca_file is not None:
                config.connection.verify = str(ca_file)
                # A hub with an authority of its own is not behind a proxy, whatever the environment says.
                config.proxies.use_env_settings = False
            # By itself it would try a method again that has been called, and hide the hub's words on a 5xx.
            config.retry_policy.retries = 0
            config.retry_policy.policy.status_forcelist = frozenset()

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

    def find_devices(self, condition: str) -> list[DeviceIdentity]:
        from azure.iot.hub.models import QuerySpecification

        found: list[DeviceIdentity] = []
        query, continuation = QuerySpecification(query=_device_query(condition)), None
        with self._call("query devices"):
            while True:
                page = self._registry.query_iot_hub(query, continuation, LIST_LIMIT)
                found += [_device(_full(twin)) for twin in page.items]
                continuation = page.continuation_token
                if not continuation or len(found) >= LIST_LIMIT:
                    return found[:LIST_LIMIT]

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

    def get_configuration(self, configuration_id: str) -> Configuration | None:
        try:
            with self._call(f"get configuration {configuration_id!r}"):
                return _configuration(_full(self._configurations.get_configuration(configuration_id)))
        except HubNotFoundError as error:
            _refuse_hub_without_configurations(error)
            return None

    def put_configuration(self, configuration: Configuration) -> Configuration:
        from azure.iot.hub.models import Configuration as SdkConfiguration

        model = SdkConfiguration.deserialize(configuration.document())
        with self._call(f"set configuration {configuration.configuration_id!r}"):
            if not configuration.etag:
                return _configuration(_full(self._configurations.create_configuration(model)))
            quoted = f'"{configuration.etag}"'
            return _configuration(_full(self._configurations.update_configuration(model, quoted)))

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult:
        from azure.iot.hub.models import CloudToDeviceMethod

        with self._call(f"call {name!r} on {_name(device_id, module_id)}"):
            method = CloudToDeviceMethod(
                method_name=name, payload=payload, response_timeout_in_seconds=timeout_s
            )
            with self._patience(timeout_s + METHOD_MARGIN_S):
                if module_id is None:
                    result = self._registry.invoke_device_method(device_id, method)
                else:
                    result = self._registry.invoke_device_module_method(device_id, module_id, method)
            return MethodResult(result.status, result.payload)

    @contextmanager
    def _patience(self, timeout_s: float) -> Iterator[None]:
        connection = self._registry.protocol.config.connection
        usual, connection.timeout = connection.timeout, (CONNECT_TIMEOUT_S, timeout_s)
        try:
            yield
        finally:
            connection.timeout = usual

    @contextmanager
    def _call(self, what: str) -> Iterator[None]:
        """Translate what the SDK and its HTTP layer raise."""
        from azure.core.exceptions import AzureError
        from msrest.exceptions import ClientRequestError, DeserializationError, HttpOperationError

        try:
            yield
        except HttpOperationError as error:
            response = error.response
            raise _status_error(self.host, what, response.status_code, response.text) from error
        except (ClientRequestError, OSError) as error:  # requests' own errors are OSErrors
            raise _unreachable(self.host, error) from error
        except DeserializationError as error:
            raise _no_hub(self.host, what) from error
        except AzureError as error:  # of azure-identity, when a token has to be renewed
            raise sign_in_error(self.host, error) from error


class HubRest:
    """Authorised requests to a hub's REST API; JSON in, JSON out."""

    def __init__(self, access: str | SignedIn, *, ca_file: Path | None = None) -> None:
        if isinstance(access, SignedIn):
            self.host, self._authorization = access.host, access.authorization
        else:
            identity = service_identity(access)
            self.host, self._authorization = identity.authority, partial(service_token, identity)
        self._pool = urllib3.PoolManager(
            cert_reqs="CERT_REQUIRED",
            ca_certs=None if ca_file is None else str(ca_file),
            retries=False,
        )

    def request(
        self,
        what: str,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        if_match: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """The answer's JSON, None if it has none; `what` is what is being done, for the message of an error."""
        headers = {} if if_match is None else {"If-Match": if_match}
        answer, _ = self._answer(what, method, path, body, query=query, headers=headers, timeout_s=timeout_s)
        return answer

    def query(self, what: str, text: str, limit: int) -> list[Any]:
        """The first `limit` rows of a query, from as many pages as the hub makes of them."""
        rows: list[Any] = []
        headers = {"x-ms-max-item-count": str(limit)}
        while True:
            page, answered = self._answer(what, "POST", "/devices/query", {"query": text}, headers=headers)
            rows += page
            if len(rows) >= limit or not answered.get("x-ms-continuation"):
                return rows[:limit]
            headers["x-ms-continuation"] = answered["x-ms-continuation"]

    def _answer(
        self,
        what: str,
        method: str,
        path: str,
        body: object,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> tuple[Any, Mapping[str, str]]:
        """The answer's JSON and its headers."""
        url = f"https://{self.host}{path}?{urlencode({**(query or {}), 'api-version': API_VERSION})}"
        own = {"Authorization": self._authorization(), "Content-Type": "application/json"}
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers={**headers, **own},
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=timeout_s),
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(self.host, error) from error
        if response.status >= 300:
            raise _status_error(self.host, what, response.status, response.data.decode(errors="replace"))
        try:
            return response.json() if response.data else None, response.headers
        except ValueError as error:
            raise _no_hub(self.host, what) from error


class RestHubClient:
    """The same calls on the service REST API: for machines without wheels of `uamqp`."""

    def __init__(self, access: str | SignedIn, *, ca_file: Path | None = None) -> None:
        self._rest = HubRest(access, ca_file=ca_file)
        self.host = self._rest.host

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
        return _device(
            self._rest.request(f"create device {device_id!r}", "PUT", _device_path(device_id), body)
        )

    def get_device(self, device_id: str) -> DeviceIdentity:
        return _device(self._rest.request(f"get device {device_id!r}", "GET", _device_path(device_id)))

    def list_devices(self) -> list[DeviceIdentity]:
        rows = self._rest.request("list devices", "GET", "/devices", query={"top": str(LIST_LIMIT)})
        return [_device(row) for row in rows]

    def find_devices(self, condition: str) -> list[DeviceIdentity]:
        rows = self._rest.query("query devices", _device_query(condition), LIST_LIMIT)
        return [_device(row) for row in rows]

    def delete_device(self, device_id: str) -> None:
        self._rest.request(f"delete device {device_id!r}", "DELETE", _device_path(device_id), if_match='"*"')

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin:
        what = f"get twin of {_name(device_id, module_id)}"
        return _twin(self._rest.request(what, "GET", _twin_path(device_id, module_id)))

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin:
        path = _twin_path(device_id, None)
        body = {"tags": dict(tags)}
        return _twin(self._rest.request(f"tag device {device_id!r}", "PATCH", path, body, if_match='"*"'))

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        path = f"{_device_path(device_id)}/applyConfigurationContent"
        body = {"modulesContent": content["modulesContent"]}
        self._rest.request(f"apply a deployment to device {device_id!r}", "POST", path, body)

    def get_configuration(self, configuration_id: str) -> Configuration | None:
        what = f"get configuration {configuration_id!r}"
        try:
            return _configuration(self._rest.request(what, "GET", _configuration_path(configuration_id)))
        except HubNotFoundError as error:
            _refuse_hub_without_configurations(error)
            return None

    def put_configuration(self, configuration: Configuration) -> Configuration:
        what = f"set configuration {configuration.configuration_id!r}"
        path = _configuration_path(configuration.configuration_id)
        etag = f'"{configuration.etag}"' if configuration.etag else None
        return _configuration(self._rest.request(what, "PUT", path, configuration.document(), if_match=etag))

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult:
        body = {"methodName": name, "payload": payload, "responseTimeoutInSeconds": timeout_s}
        path = _twin_path(device_id, module_id) + "/methods"
        what = f"call {name!r} on {_name(device_id, module_id)}"
        answer = self._rest.request(what, "POST", path, body, timeout_s=timeout_s + METHOD_MARGIN_S)
        return MethodResult(answer["status"], answer.get("payload"))


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


def _device_path(device_id: str) -> str:
    return f"/devices/{quote(device_id, safe='')}"


def _twin_path(device_id: str, module_id: str | None) -> str:
    device = f"/twins/{quote(device_id, safe='')}"
    return device if module_id is None else f"{device}/modules/{quote(module_id, safe='')}"


def _configuration_path(configuration_id: str) -> str:
    return f"/configurations/{quote(configuration_id, safe='')}"


def _refuse_hub_without_configurations(error: HubNotFoundError) -> None:
    """A hub answers 404 with a name of its own for a configuration it has not; without, it knows no such path."""
    if error.reason != "ConfigurationNotFound":
        raise HubRequestRejectedError(
            f"hub {error.where} serves no automatic deployments (configurations): it answered 404 to their address",
            where=error.where,
            next_command="edgewright manifest apply FILE --device DEVICE",
        ) from error


def _device_query(condition: str) -> str:
    return f"SELECT * FROM devices WHERE {condition}"


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


def _configuration(row: Mapping[str, Any]) -> Configuration:
    return Configuration(
        configuration_id=row["id"],
        target_condition=row.get("targetCondition") or "",
        priority=int(row.get("priority") or 0),
        content={kind: part for kind, part in (row.get("content") or {}).items() if part is not None},
        labels=row.get("labels") or {},
        metric_queries=(row.get("metrics") or {}).get("queries") or {},
        etag=(row.get("etag") or "").strip('"'),
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
_ERRORS_BY_NAME: Mapping[str, type[HubClientError]] = {
    "DeviceNotOnline": HubDeviceOfflineError,  # a 404 like that of a device which does not exist
    # 403s that are not about who is asking.
    "IotHubQuotaExceeded": HubRequestRejectedError,
    "OperationNotAllowed": HubRequestRejectedError,
}
_NEXT_COMMANDS: Mapping[type[HubClientError], str] = {
    HubUnreachableError: "edgewright hub status",
    HubUntrustedError: "edgewright hub status",
    HubRefusedError: "edgewright hub status",
    HubNotFoundError: "edgewright device list",
    HubDeviceOfflineError: "edgewright device list",
}


def _status_error(host: str, what: str, status: int, body: str) -> HubClientError:
    name, reason = _reason(body)
    kind = _ERRORS_BY_NAME.get(name) or _STATUS_ERRORS.get(status, HubRequestRejectedError)
    verb = "failed" if status >= 500 else "refused"
    error = kind(
        f"hub {host} {verb} to {what}: {status} {name + ': ' if name else ''}{reason}",
        where=host,
        temporary=True if status == 429 or status >= 500 else None,
        next_command=_NEXT_COMMANDS.get(kind),
    )
    error.reason = name
    return error


def _reason(body: str) -> tuple[str, str]:
    """The name of the error and the hub's own words: `Message` of its error body is `ErrorCode:Name;words`."""
    try:
        document = json.loads(body)
        text = str(document.get("Message") or document.get("errorMessage") or body)
    except (ValueError, AttributeError):
        text = body
    words = redact_text(re.sub(r"\s+", " ", text).strip()[:500]) or "without a reason"
    named = re.match(r"ErrorCode:(\w+);\s*", words)
    return (named[1], words[named.end() :]) if named else ("", words)


def _unreachable(host: str, error: BaseException) -> HubClientError:
    reason: BaseException = error
    while True:  # the cause deepest inside says what happened: refused, timed out, certificate
        inner = reason.__cause__ or getattr(reason, "reason", None) or reason.__context__
        if not isinstance(inner, BaseException) or inner is reason:
            break
        reason = inner
    untrusted = isinstance(reason, ssl.SSLCertVerificationError)
    kind: type[HubClientError] = HubUntrustedError if untrusted else HubUnreachableError
    problem = "cannot be trusted" if untrusted else "cannot be reached"
    return kind(
        f"hub {host} {problem}: {redact_text(str(reason)) or type(reason).__name__}",
        where=host,
        next_command=_NEXT_COMMANDS[kind],
    )


def _no_hub(host: str, what: str) -> HubClientError:
    return HubClientError(
        f"expected a hub's JSON when asking to {what}, but {host} answered something else: is it a hub's address?",
        code="hub-answer",
        where=host,
    )
