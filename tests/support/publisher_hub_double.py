"""A hub in memory behind `HubClient`: the embedded hub's own rules, no process, no network; devices report by hand.

hub = HubDouble()
hub.create_device("d", edge=True)
hub.report("d", {"lastDesiredVersion": 2})      # what the device's $edgeAgent says
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hub_values import Clock, CountedBytes

from edge_contracts.redact import Secret
from iot_hub.core import Change, HubCore
from iot_hub.deployment_content import DeploymentContent
from iot_hub.device_query import read_query
from iot_hub.documents import twin_document
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey, IdentityRecord, IdentityRequest
from iot_hub.presence import Activity
from iot_hub.twins import TwinRequest
from publisher.hub_client import (
    DeviceIdentity,
    HubClientError,
    HubConflictError,
    HubDeviceOfflineError,
    HubNotFoundError,
    HubRequestRejectedError,
    MethodResult,
    Twin,
)

ERRORS: Mapping[int, type[HubClientError]] = {404: HubNotFoundError, 409: HubConflictError}
_numbers = itertools.count(1)


class HubDouble:
    """See the module. `on_read` is called before every twin that is read: a device does something meanwhile."""

    def __init__(self, host: str = "hub.test") -> None:
        self.host = host
        self.on_read: Callable[[], None] = lambda: None
        self._core = HubCore(now=Clock(), random_bytes=CountedBytes())

    def create_device(self, device_id: str, *, edge: bool) -> DeviceIdentity:
        key = IdentityKey(device_id)
        request = IdentityRequest(primary_key=Secret(_key()), secondary_key=Secret(_key()), iot_edge=edge)
        with self._translated():
            self._run(self._core.put_identity(key, request, None))
        return self.get_device(device_id)

    def get_device(self, device_id: str) -> DeviceIdentity:
        with self._translated():
            return _device(self._core.identity(IdentityKey(device_id)))

    def list_devices(self) -> list[DeviceIdentity]:
        return [_device(record) for record in self._core.devices()]

    def find_devices(self, condition: str) -> list[DeviceIdentity]:
        with self._translated():
            query = read_query({"query": f"SELECT * FROM devices WHERE {condition}"})
        records = [record for record in self._core.devices() if query.matches(self._document(record))]
        return [dataclasses.replace(_device(record), primary_key=Secret("")) for record in records]

    def _document(self, record: IdentityRecord) -> dict[str, Any]:
        return twin_document(self._core.twin(record.key), record, Activity())

    def delete_device(self, device_id: str) -> None:
        with self._translated():
            self._run(self._core.delete_identity(IdentityKey(device_id), "*"))

    def get_twin(self, device_id: str, module_id: str | None = None) -> Twin:
        self.on_read()
        with self._translated():
            record = self._core.twin(IdentityKey(device_id, module_id))
        return Twin(
            device_id,
            module_id,
            tags=record.tags,
            desired={**record.desired.values, "$version": record.desired.version},
            reported={**record.reported.values, "$version": record.reported.version},
            connected=False,
        )

    def update_tags(self, device_id: str, tags: Mapping[str, Any]) -> Twin:
        with self._translated():
            self._run(self._core.write_twin(IdentityKey(device_id), TwinRequest(tags=tags, desired={}), "*"))
        return self.get_twin(device_id)

    def apply_configuration(self, device_id: str, content: Mapping[str, Any]) -> None:
        key = IdentityKey(device_id)
        with self._translated(f"device {device_id!r}: "):
            self._run(self._core.apply_content(key, DeploymentContent.parse(content, key)))

    def invoke_method(
        self, device_id: str, module_id: str | None, name: str, payload: Any, timeout_s: int = 30
    ) -> MethodResult:
        with self._translated():
            key = self._core.identity(IdentityKey(device_id, module_id)).key
        raise HubDeviceOfflineError(f"hub {self.host}: {name!r} not called, '{key}' is not connected")

    def report(self, device_id: str, patch: Mapping[str, Any], module_id: str = "$edgeAgent") -> None:
        """Merge a patch into the module's reported properties, as the device does."""
        self._run(self._core.report(IdentityKey(device_id, module_id), patch))

    def _run(self, change: Change) -> None:
        self._core.apply(change)

    @contextmanager
    def _translated(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except HubRequestError as error:
            kind = ERRORS.get(error.status, HubRequestRejectedError)
            next_command = "edgewright device list" if kind is HubNotFoundError else None
            raise kind(
                f"hub {self.host}: {what}{error.status} {error.code}: {error.message}",
                next_command=next_command,
            ) from error


def _device(record: IdentityRecord) -> DeviceIdentity:
    return DeviceIdentity(
        record.key.device_id,
        enabled=record.enabled,
        is_edge=record.iot_edge,
        connected=False,
        primary_key=record.primary_key,
    )


def _key() -> str:
    return base64.b64encode(next(_numbers).to_bytes(32, "big")).decode()
