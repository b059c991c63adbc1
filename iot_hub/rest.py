"""The hub's HTTP API: Azure's service API, the paths a device calls about its own modules, and ours under /edgewright.

Any `api-version` is accepted. Errors have Azure's shape: `{"Message": "ErrorCode:Name;text", "ExceptionMessage": …}` and the
name in the header `iothub-errorcode`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_contracts.errors import ContractError
from edge_contracts.sas import parse_sas
from iot_hub.authentication import Authenticator, token_host
from iot_hub.bulk import BulkOperation
from iot_hub.deployment_content import DeploymentContent
from iot_hub.device_query import DEFAULT_PAGE, LARGEST_PAGE, Continuation, query_page, read_query
from iot_hub.errors import STATUS_OF_CODE, HubRequestError, HubStorageError
from iot_hub.hub import Hub
from iot_hub.identities import IdentityKey, IdentityRequest
from iot_hub.json_body import parse_json
from iot_hub.methods import MethodCall, MethodCalls
from iot_hub.policies import Right
from iot_hub.registry_access import RegistryAccess, credential_document
from iot_hub.registry_credentials import CredentialRequest
from iot_hub.telemetry_log import LONGEST_WAIT_S, PAGE_LIMIT, TelemetryLog
from iot_hub.twins import TwinRequest

log = logging.getLogger(__name__)

# A deployment for 50 modules is the largest document that anyone sends: 52 twins of 32 KiB.
BODY_LIMIT_BYTES = 2 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
_LARGEST_DEVICE_LIST = 1000

Handler = Callable[[Request], Awaitable[Response]]


class HubApi:
    """One method per operation.

    Args:
        registry_address: `host:port` of the registry, for those who get a credential.
    """

    def __init__(
        self,
        hub: Hub,
        authenticator: Authenticator,
        methods: MethodCalls,
        telemetry: TelemetryLog,
        *,
        registry: RegistryAccess,
        registry_address: str,
    ) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._methods = methods
        self._telemetry = telemetry
        self._registry = registry
        self._registry_address = registry_address

    def app(self) -> Starlette:
        """The ASGI application."""
        read, write, service = Right.REGISTRY_READ, Right.REGISTRY_WRITE, Right.SERVICE_CONNECT
        device, module = "/devices/{device}", "/devices/{device}/modules/{module}"
        table: tuple[tuple[str, str, Right, Handler], ...] = (
            ("GET", "/devices", read, self.list_devices),
            ("POST", "/devices", write, self.bulk),
            ("POST", "/devices/query", read, self.query),
            ("GET", device, read, self.get_identity),
            ("PUT", device, write, self.put_identity),
            ("DELETE", device, write, self.delete_identity),
            ("POST", f"{device}/applyConfigurationContent", write, self.apply_content),
            ("GET", f"{device}/modules", read, self.list_modules),
            ("GET", module, read, self.get_identity),
            ("PUT", module, write, self.put_identity),
            ("DELETE", module, write, self.delete_identity),
            ("GET", "/statistics/devices", read, self.registry_statistics),
            ("GET", "/statistics/service", service, self.service_statistics),
            *(
                (method, path, service, handler)
                for path in ("/twins/{device}", "/twins/{device}/modules/{module}")
                for method, handler in (
                    ("GET", self.get_twin),
                    ("PATCH", self.patch_twin),
                    ("PUT", self.replace_twin),
                )
            ),
            ("POST", "/twins/{device}/methods", service, self.invoke_method),
            ("POST", "/twins/{device}/modules/{module}/methods", service, self.invoke_method),
            ("GET", "/edgewright/telemetry", service, self.read_telemetry),
            ("GET", "/edgewright/registry/credentials", read, self.list_credentials),
            ("POST", "/edgewright/registry/credentials", write, self.mint_credential),
            ("DELETE", "/edgewright/registry/credentials/{username}", write, self.revoke_credential),
        )
        routes = [
            Route(path, self._guarded(handler, right), methods=[method])
            for method, path, right, handler in table
        ]
        return Starlette(
            routes=routes,
            exception_handlers={
                HubRequestError: _on_refused,
                HubStorageError: _on_storage,
                HTTPException: _on_http,
                ClientDisconnect: _on_client_gone,
                Exception: _on_bug,
            },
        )

    # Identities.

    async def list_devices(self, request: Request) -> Response:
        top = _integer(request, "top", _LARGEST_DEVICE_LIST, 1, _LARGEST_DEVICE_LIST)
        records = (record for _, record in zip(range(top), self._hub.core.devices(), strict=False))
        return _json([self._hub.identity_document(record.key) for record in records])

    async def list_modules(self, request: Request) -> Response:
        records = self._hub.core.modules(_key(request))
        return _json([self._hub.identity_document(record.key) for record in records])

    async def get_identity(self, request: Request) -> Response:
        document = self._hub.identity_document(_key(request))
        return _json(document, headers={"ETag": f'"{document["etag"]}"'})

    async def put_identity(self, request: Request) -> Response:
        key, if_match = _key(request), _if_match(request)
        asked = IdentityRequest.parse(await _body(request), key)
        await self._hub.change(lambda: self._hub.core.put_identity(key, asked, if_match))
        # Azure answers 201 for a new module and 200 for a new device.
        created_module = key.module_id is not None and if_match is None
        return _json(self._hub.identity_document(key), 201 if created_module else 200)

    async def delete_identity(self, request: Request) -> Response:
        key, if_match = _key(request), _if_match(request)
        await self._hub.change(lambda: self._hub.core.delete_identity(key, if_match))
        return Response(status_code=204)

    async def bulk(self, request: Request) -> Response:
        operation = BulkOperation.parse(await _body(request))
        await self._hub.change(lambda: operation.plan(self._hub.core))
        return _json(operation.document(), 400 if operation.errors else 200)

    async def apply_content(self, request: Request) -> Response:
        device = _key(request)
        content = DeploymentContent.parse(await _body(request), device)
        await self._hub.change(lambda: self._hub.core.apply_content(device, content))
        return Response(status_code=204)

    async def registry_statistics(self, request: Request) -> Response:
        enabled = [record.enabled for record in self._hub.core.devices()]
        return _json(
            {
                "totalDeviceCount": len(enabled),
                "enabledDeviceCount": sum(enabled),
                "disabledDeviceCount": len(enabled) - sum(enabled),
            }
        )

    async def service_statistics(self, request: Request) -> Response:
        return _json({"connectedDeviceCount": self._hub.presence.connected_devices()})

    # Twins and methods.

    async def query(self, request: Request) -> Response:
        query = read_query(await _body(request))
        size = _header_integer(request, "x-ms-max-item-count", DEFAULT_PAGE, LARGEST_PAGE)
        start = Continuation.parse(request.headers.get("x-ms-continuation"))
        page = await query_page(self._hub, query, size, start)
        more = {} if page.continuation is None else {"x-ms-continuation": str(page.continuation)}
        return _json(page.rows, headers={"x-ms-item-type": page.item_type, **more})

    async def get_twin(self, request: Request) -> Response:
        return self._twin(_key(request))

    async def patch_twin(self, request: Request) -> Response:
        return await self._write_twin(request, replaces=False)

    async def replace_twin(self, request: Request) -> Response:
        return await self._write_twin(request, replaces=True)

    async def invoke_method(self, request: Request) -> Response:
        key = _key(request)
        self._hub.core.identity(key)
        status, payload = await self._methods.invoke(key, MethodCall.parse(await _body(request)))
        return _json({"status": status, "payload": payload})

    async def _write_twin(self, request: Request, *, replaces: bool) -> Response:
        key, if_match = _key(request), _if_match(request)
        asked = TwinRequest.parse(await _body(request), replaces=replaces)
        await self._hub.change(lambda: self._hub.core.write_twin(key, asked, if_match))
        return self._twin(key)

    def _twin(self, key: IdentityKey) -> Response:
        document = self._hub.twin_document(key)
        return _json(document, headers={"ETag": f'"{document["etag"]}"'})

    # Ours.

    async def read_telemetry(self, request: Request) -> Response:
        start = request.query_params.get("from", "1")
        page = await self._telemetry.read(
            request.query_params.get("device"),
            None if start == "end" else _integer(request, "from", 1, 0, 2**62),
            _integer(request, "limit", 100, 1, PAGE_LIMIT),
            _seconds(request, "wait", LONGEST_WAIT_S),
        )
        return _json(page.as_document())

    async def list_credentials(self, request: Request) -> Response:
        records = self._registry.records()
        return _json([self._credential(record) for record in records])

    async def mint_credential(self, request: Request) -> Response:
        record, password = await self._registry.mint(CredentialRequest.parse(await _body(request)))
        return _json({**self._credential(record), "password": password.reveal()}, 201)

    async def revoke_credential(self, request: Request) -> Response:
        await self._registry.revoke(request.path_params["username"])
        return Response(status_code=204)

    def _credential(self, record: Any) -> dict[str, Any]:
        return credential_document(record, self._registry_address)

    # Who is asking.

    def _guarded(self, handler: Handler, right: Right) -> Handler:
        async def endpoint(request: Request) -> Response:
            self._check(request, right)
            return await handler(request)

        return endpoint

    def _check(self, request: Request, right: Right) -> None:
        """A policy's token for this host; on the paths of a device's modules, the device's own token, too."""
        header = request.headers.get("authorization", "")
        path = request.scope["path"]
        device = request.path_params.get("device")
        try:
            token = parse_sas(header)
        except ContractError as error:
            raise HubRequestError("IotHubUnauthorizedAccess", f"Unauthorized: {error.message}") from error
        if token.policy is None and device is not None and path.startswith(f"/devices/{device}/modules"):
            self._authenticator.check_identity(header, IdentityKey(device), [f"{token_host(token)}{path}"])
        else:
            self._authenticator.check_service(header, _audiences(request), right)


def _audiences(request: Request) -> list[str]:
    """What a token for this request may be for: the host as the client called it, with its port or without."""
    authority = request.headers.get("host", "")
    host, colon, port = authority.rpartition(":")
    hosts = [authority, *([host] if colon and port.isdigit() else [])]
    return [f"{each}{request.scope['path']}" for each in hosts]


def _key(request: Request) -> IdentityKey:
    return IdentityKey(request.path_params["device"], request.path_params.get("module"))


def _if_match(request: Request) -> str | None:
    """The etag without quotes: some clients quote even the wildcard, others quote nothing."""
    value = request.headers.get("if-match")
    return None if value is None else value.strip().removeprefix("W/").strip('"')


async def _body(request: Request) -> Any:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return parse_json(await _read_body(request), "the body")
    except TimeoutError as error:
        raise HubRequestError(
            "RequestTimeout", f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        ) from error


async def _read_body(request: Request) -> bytes:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > BODY_LIMIT_BYTES:
            raise HubRequestError(
                "RequestEntityTooLarge", f"a request body may have {BODY_LIMIT_BYTES} bytes"
            )
    return bytes(raw)


def _integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    return _bounded(request.query_params.get(name), name, default, least, most)


def _header_integer(request: Request, name: str, default: int, most: int) -> int:
    return _bounded(request.headers.get(name), name, default, 1, most)


def _bounded(text: str | None, name: str, default: int, least: int, most: int) -> int:
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise HubRequestError(
            "ArgumentInvalid", f"{name} must be an integer from {least} to {most}, not {text!r}", where=name
        )
    return int(text)


def _seconds(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name) or "0"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise HubRequestError(
            "ArgumentInvalid",
            f"{name} must be a number of seconds from 0 to {most:g}, not {text!r}",
            where=name,
        )
    return value


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(document), status, headers, "application/json; charset=utf-8")


def _error(code: str, message: str, status: int) -> Response:
    document = {
        "Message": f"ErrorCode:{code};{message}",
        "ExceptionMessage": f"Tracking ID:{secrets.token_hex(16).upper()}",
    }
    return JSONResponse(document, status, {"iothub-errorcode": code})


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubRequestError)
    return _error(error.code, error.message, error.status)


async def _on_storage(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.scope["path"], error)
    return _error("ServiceUnavailable", "the hub cannot write to its disk; nothing was changed", 503)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "MethodNotAllowed" if error.status_code == STATUS_OF_CODE["MethodNotAllowed"] else "NotFound"
    return _error(
        code,
        f"this hub does not serve {request.method} {request.scope['path']}; it serves identities, twins, queries, methods, "
        "applyConfigurationContent on one device, telemetry and registry credentials",
        error.status_code,
    )


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _on_bug(request: Request, error: Exception) -> Response:
    return _error("ServerError", "an internal error; the hub's log holds it", 500)
