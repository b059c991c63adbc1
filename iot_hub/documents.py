"""Identities and twins as Azure's service API shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from iot_hub.identities import IdentityRecord
from iot_hub.presence import Activity
from iot_hub.twins import TwinRecord


def identity_document(record: IdentityRecord, activity: Activity) -> dict[str, Any]:
    """A `Device` or `Module`; it holds the keys, as Azure's does."""
    common = {
        "deviceId": record.key.device_id,
        "generationId": record.generation_id,
        "etag": record.etag,
        "connectionState": activity.connection_state,
        "connectionStateUpdatedTime": activity.state_updated_time,
        "lastActivityTime": activity.last_activity_time,
        "cloudToDeviceMessageCount": 0,
        "authentication": {
            "type": "sas",
            "symmetricKey": {
                "primaryKey": record.primary_key.reveal(),
                "secondaryKey": record.secondary_key.reveal(),
            },
            "x509Thumbprint": {"primaryThumbprint": None, "secondaryThumbprint": None},
        },
    }
    if record.key.module_id is not None:
        return {**common, "moduleId": record.key.module_id, "managedBy": record.managed_by}
    return {
        **common,
        **_status(record),
        "capabilities": {"iotEdge": record.iot_edge},
        "deviceScope": record.device_scope,
        "parentScopes": [],
    }


# Each from the twin, its device (the device itself, for a module's twin too) and its own activity.
_TWIN_MEMBERS: dict[str, Callable[[TwinRecord, IdentityRecord, Activity], Any]] = {
    "deviceId": lambda twin, device, activity: twin.key.device_id,
    "moduleId": lambda twin, device, activity: twin.key.module_id,
    "etag": lambda twin, device, activity: twin.etag,
    "deviceEtag": lambda twin, device, activity: device.etag,
    "status": lambda twin, device, activity: _status(device)["status"],
    "statusReason": lambda twin, device, activity: device.status_reason,
    "statusUpdatedTime": lambda twin, device, activity: device.status_updated_time,
    "connectionState": lambda twin, device, activity: activity.connection_state,
    "lastActivityTime": lambda twin, device, activity: activity.last_activity_time,
    "cloudToDeviceMessageCount": lambda twin, device, activity: 0,
    "authenticationType": lambda twin, device, activity: "sas",
    "x509Thumbprint": lambda twin, device, activity: {"primaryThumbprint": None, "secondaryThumbprint": None},
    "version": lambda twin, device, activity: twin.version,
    "tags": lambda twin, device, activity: dict(twin.tags),
    "properties": lambda twin, device, activity: {
        "desired": twin.desired.as_document(),
        "reported": twin.reported.as_document(),
    },
    "capabilities": lambda twin, device, activity: {"iotEdge": device.iot_edge},
    "deviceScope": lambda twin, device, activity: device.device_scope,
    "parentScopes": lambda twin, device, activity: [],
}


def twin_document(
    twin: TwinRecord,
    device: IdentityRecord,
    activity: Activity,
    members: Iterable[str] = tuple(_TWIN_MEMBERS),
) -> dict[str, Any]:
    """A `Twin`, or those of its members that are asked for and are there; `device` is the device itself."""
    document = {
        name: _TWIN_MEMBERS[name](twin, device, activity) for name in members if name in _TWIN_MEMBERS
    }
    if twin.key.module_id is None:
        document.pop("moduleId", None)
    return document


def _status(record: IdentityRecord) -> dict[str, Any]:
    return {
        "status": "enabled" if record.enabled else "disabled",
        "statusReason": record.status_reason,
        "statusUpdatedTime": record.status_updated_time,
    }
