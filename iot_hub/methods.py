"""Direct methods: a service's request goes to one connection, the answer comes back by request id."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_contracts.topics import MethodRequest, MethodResponse
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey
from iot_hub.mqtt_server import Connection, MqttDeliveryError

# Azure, "Understand and invoke direct methods": 5 to 300 s, 30 by default; payloads up to 128 KB.
RESPONSE_TIMEOUT_S = (5, 300)
CONNECT_TIMEOUT_S = (0, 300)
PAYLOAD_LIMIT_BYTES = 128 * 1024
_NAME_LIMIT = 100
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class MethodCall:
    """What `POST …/methods` asks for."""

    name: str
    payload: bytes
    response_timeout_s: int = 30
    connect_timeout_s: int = 0

    @classmethod
    def parse(cls, body: object) -> MethodCall:
        if not isinstance(body, Mapping):
            raise _invalid("the body", "a JSON object", body)
        name = body.get("methodName")
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_LIMIT:
            raise _invalid("methodName", f"text of 1 to {_NAME_LIMIT} characters", name)
        payload = json.dumps(body.get("payload")).encode()
        if len(payload) > PAYLOAD_LIMIT_BYTES:
            raise _invalid("payload", f"at most {PAYLOAD_LIMIT_BYTES} bytes", f"{len(payload)} bytes")
        return cls(
            name,
            payload,
            _seconds(body, "responseTimeoutInSeconds", RESPONSE_TIMEOUT_S, 30),
            _seconds(body, "connectTimeoutInSeconds", CONNECT_TIMEOUT_S, 0),
        )


class MethodCalls:
    """Calls that wait for their answer.

    Args:
        connection_of: the open connection of an identity.
    """

    def __init__(self, connection_of: Callable[[IdentityKey], Connection | None]) -> None:
        self._connection_of = connection_of
        self._waiting: dict[str, tuple[IdentityKey, asyncio.Future[tuple[int, Any]]]] = {}

    async def invoke(self, key: IdentityKey, call: MethodCall) -> tuple[int, Any]:
        """The method's status and payload.

        Raises:
            HubRequestError: DeviceNotOnline, or GatewayTimeout when no answer came in time.
        """
        rid = secrets.token_hex(16)
        topic = str(MethodRequest(call.name, rid))
        connection = await self._listening(key, topic, call.connect_timeout_s)
        answer: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = (key, answer)
        try:
            connection.send(topic, call.payload)
            async with asyncio.timeout(call.response_timeout_s):
                return await answer
        except MqttDeliveryError as error:
            raise _offline(key) from error
        except TimeoutError as error:
            raise HubRequestError(
                "GatewayTimeout",
                f"{str(key)!r} did not answer method {call.name!r} within {call.response_timeout_s} s",
                where=str(key),
            ) from error
        finally:
            del self._waiting[rid]

    def answer(self, key: IdentityKey, response: MethodResponse, payload: Any) -> None:
        """Take an answer; one that comes too late, or from another identity than was asked, is dropped."""
        asked, answer = self._waiting.get(response.rid, (None, None))
        if asked == key and answer is not None and not answer.done():
            answer.set_result((response.status, payload))

    async def _listening(self, key: IdentityKey, topic: str, timeout_s: float) -> Connection:
        """The identity's connection once it is there and subscribed to methods."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            connection = self._connection_of(key)
            if connection is not None and connection.is_subscribed(topic):
                return connection
            if asyncio.get_running_loop().time() >= deadline:
                raise _offline(key)
            await asyncio.sleep(_POLL_S)


def _offline(key: IdentityKey) -> HubRequestError:
    # 404103 is Azure's number of this error; clients look for it in the text.
    return HubRequestError(
        "DeviceNotOnline",
        f"404103: {str(key)!r} is not connected, or does not listen for methods",
        where=str(key),
    )


def _seconds(body: Mapping[str, Any], name: str, bounds: tuple[int, int], default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not bounds[0] <= value <= bounds[1]:
        raise _invalid(name, f"an integer from {bounds[0]} to {bounds[1]}", value)
    return value


def _invalid(where: str, expected: str, found: object) -> HubRequestError:
    return HubRequestError("ArgumentInvalid", f"{where} must be {expected}, not {found!r}", where=where)
