"""The part of IoT Hub's query language that this hub answers: all twins of devices, or of their modules, page by page."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from iot_hub.core import HubCore
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
_SOURCES = {"select * from devices": False, "select * from devices.modules": True}


class DeviceQuery:
    """`SELECT * FROM devices` or `SELECT * FROM devices.modules`, read from a request body."""

    def __init__(self, of_modules: bool) -> None:
        self._of_modules = of_modules

    @classmethod
    def parse(cls, body: object) -> DeviceQuery:
        text = body.get("query") if isinstance(body, Mapping) else None
        words = " ".join(text.lower().split()).rstrip(" ;") if isinstance(text, str) else ""
        if words not in _SOURCES:
            raise HubRequestError(
                "ArgumentInvalid",
                "query must be 'SELECT * FROM devices' or 'SELECT * FROM devices.modules', which is what this hub "
                f"answers, not {text!r}",
                where="query",
            )
        return cls(_SOURCES[words])

    def page(
        self, core: HubCore, size: int, continuation: str | None
    ) -> tuple[list[IdentityKey], str | None]:
        """Keys of the twins of one page, and what continues after it; None at the end.

        A continuation names the last identity shown, so that what comes and goes meanwhile shifts nothing.
        """
        after = None if not continuation else _read_continuation(continuation)
        devices = (record.key for record in core.devices())
        keys = chain.from_iterable(
            (record.key for record in core.modules(device)) if self._of_modules else (device,)
            for device in devices
        )
        rest = (key for key in keys if after is None or _order(key) > _order(after))
        found = list(islice(rest, size + 1))
        more = len(found) > size
        return found[:size], _continuation(found[size - 1]) if more else None


def _order(key: IdentityKey) -> tuple[str, str]:
    return key.device_id, key.module_id or ""


def _continuation(key: IdentityKey) -> str:
    return base64.urlsafe_b64encode(json.dumps([key.device_id, key.module_id]).encode()).decode()


def _read_continuation(text: str) -> IdentityKey:
    try:
        device_id, module_id = json.loads(base64.urlsafe_b64decode(text))
    except (binascii.Error, ValueError, TypeError) as error:
        raise _bad_continuation(text) from error
    if not isinstance(device_id, str) or not isinstance(module_id, str | None):
        raise _bad_continuation(text)
    return IdentityKey(device_id, module_id)


def _bad_continuation(text: Any) -> HubRequestError:
    return HubRequestError(
        "ArgumentInvalid",
        f"x-ms-continuation must be one that this hub gave, not {text!r}",
        where="x-ms-continuation",
    )
