"""Identities and twins as Azure's service API shows them."""

from __future__ import annotations

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


def twin_document(twin: TwinRecord, device: IdentityRecord, activity: Activity) -> dict[str, Any]:
    """A `Twin`; `device` is the device itself, for a module's twin too."""
    module = {} if twin.key.module_id is None else {"moduleId": twin.key.module_id}
    return {
        "deviceId": twin.key.device_id,
        **module,
        "etag": twin.etag,
        "deviceEtag": device.etag,
        **_status(device),
        "connectionState": activity.connection_state,
        "lastActivityTime": activity.last_activity_time,
        "cloudToDeviceMessageCount": 0,
        "authenticationType": "sas",
        "x509Thumbprint": {"primaryThumbprint": None, "secondaryThumbprint": None},
        "version": twin.version,
        "tags": dict(twin.tags),
        "properties": {"desired": twin.desired.as_document(), "reported": twin.reported.as_document()},
        "capabilities": {"iotEdge": device.iot_edge},
        "deviceScope": device.device_scope,
        "parentScopes": [],
    }


def _status(record: IdentityRecord) -> dict[str, Any]:
    return {
        "status": "enabled" if record.enabled else "disabled",
        "statusReason": record.status_reason,
        "statusUpdatedTime": record.status_updated_time,
    }
