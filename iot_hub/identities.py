"""Device and module identities as values, and how a request body asks for one.

- An identity is a device (`module_id` None) or a module of a device; ids are case-sensitive.
- Authentication is by symmetric key: a primary and a secondary one, either opens the door.
- An edge device has the modules `$edgeAgent` and `$edgeHub`, made and removed with it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_contracts.redact import Secret
from iot_hub.errors import HubRequestError

# What Azure answers where something has not happened yet.
NEVER = "0001-01-01T00:00:00Z"

EDGE_AGENT = "$edgeAgent"
EDGE_HUB = "$edgeHub"
SYSTEM_MODULES = (EDGE_AGENT, EDGE_HUB)

# Azure, "Identity registry": ASCII letters, digits and these; at most 128 characters.
_ID = re.compile(r"[A-Za-z0-9\-.+%_#*?!(),:=@;$']{1,128}")
# Azure, "Security tokens": a key is 16 to 64 bytes.
_KEY_BYTES = range(16, 65)
_STATUS_REASON_LIMIT = 128


@dataclass(frozen=True, slots=True, order=True)
class IdentityKey:
    """Names one identity of the hub."""

    device_id: str
    module_id: str | None = None

    def __str__(self) -> str:
        return self.device_id if self.module_id is None else f"{self.device_id}/{self.module_id}"

    @property
    def device(self) -> IdentityKey:
        """The device itself, for a device or one of its modules."""
        return self if self.module_id is None else IdentityKey(self.device_id)

    def module(self, module_id: str) -> IdentityKey:
        return IdentityKey(self.device_id, module_id)


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """One identity as the hub keeps it; `created` in seconds since the epoch, other times as text."""

    key: IdentityKey
    generation_id: str
    etag: str
    primary_key: Secret
    secondary_key: Secret
    created: float
    enabled: bool = True
    status_reason: str | None = None
    status_updated_time: str = NEVER
    iot_edge: bool = False
    managed_by: str | None = None

    @property
    def keys(self) -> tuple[str, str]:
        """Both keys as plain base64, for checking a token."""
        return self.primary_key.reveal(), self.secondary_key.reveal()

    @property
    def device_scope(self) -> str | None:
        """Azure's name of the edge device as a parent; None for all others."""
        return f"ms-azure-iot-edge://{self.key.device_id}-{self.generation_id}" if self.iot_edge else None


@dataclass(frozen=True, slots=True)
class IdentityRequest:
    """What a PUT asks for; None means "as it is", or the default for a new identity."""

    primary_key: Secret | None = None
    secondary_key: Secret | None = None
    enabled: bool | None = None
    status_reason: str | None = None
    iot_edge: bool | None = None
    managed_by: str | None = None
    device_scope: str | None = None

    @classmethod
    def parse(cls, body: object, key: IdentityKey) -> IdentityRequest:
        """Read a service or device request body for `key`, strictly where a mistake would be silent."""
        document = _mapping(body, "the body")
        _same(document.get("deviceId"), key.device_id, "deviceId")
        if key.module_id is not None:
            _same(document.get("moduleId"), key.module_id, "moduleId")
        primary, secondary = _keys(document.get("authentication"))
        capabilities = _mapping(document.get("capabilities") or {}, "capabilities")
        return cls(
            primary_key=primary,
            secondary_key=secondary,
            enabled=_enabled(document.get("status")),
            status_reason=_text(document.get("statusReason"), "statusReason", _STATUS_REASON_LIMIT),
            iot_edge=_flag(capabilities.get("iotEdge"), "capabilities.iotEdge"),
            managed_by=_text(document.get("managedBy"), "managedBy", 128),
            device_scope=_text(document.get("deviceScope"), "deviceScope", 512),
        )

    def agrees_with(self, record: IdentityRecord) -> bool:
        """Whether applying this request to `record` would change nothing."""
        asked_and_kept = (
            (self.primary_key, record.primary_key),
            (self.secondary_key, record.secondary_key),
            (self.enabled, record.enabled),
            (self.status_reason, record.status_reason),
            (self.iot_edge, record.iot_edge),
            (self.managed_by, record.managed_by),
        )
        return all(asked is None or _plain(asked) == _plain(kept) for asked, kept in asked_and_kept)

    @property
    def brings_keys(self) -> bool:
        return self.primary_key is not None and self.secondary_key is not None


def check_identity_key(key: IdentityKey) -> None:
    """Raise `HubRequestError` when an id of `key` cannot be an id."""
    for name, value in (("deviceId", key.device_id), ("moduleId", key.module_id)):
        if value is not None and not _ID.fullmatch(value):
            raise HubRequestError(
                "ArgumentInvalid",
                f"{name} must be 1 to 128 ASCII letters, digits and - . + % _ # * ? ! ( ) , : = @ ; $ ', not {value!r}",
                where=name,
            )


def identity_not_found(key: IdentityKey) -> HubRequestError:
    if key.module_id is None:
        return HubRequestError(
            "DeviceNotFound", f"device {key.device_id!r} is not registered", where=str(key)
        )
    return HubRequestError(
        "ModuleNotFound",
        f"device {key.device_id!r} has no module {key.module_id!r}",
        where=str(key),
    )


def _plain(value: object) -> object:
    return value.reveal() if isinstance(value, Secret) else value


def _invalid(where: str, expected: str, found: object) -> HubRequestError:
    return HubRequestError("ArgumentInvalid", f"{where} must be {expected}, not {found!r}", where=where)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(where, "a JSON object", type(value).__name__)
    return value


def _same(value: object, expected: str, where: str) -> None:
    if value is not None and value != expected:
        raise _invalid(where, f"{expected!r} as in the path", value)


def _text(value: object, where: str, limit: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > limit:
        raise _invalid(where, f"text of at most {limit} characters", value)
    return value or None


def _flag(value: object, where: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _invalid(where, "true or false", value)
    return value


def _enabled(value: object) -> bool | None:
    if value is None:
        return None
    statuses = {"enabled": True, "disabled": False}
    if not isinstance(value, str) or value.lower() not in statuses:
        raise _invalid("status", "'enabled' or 'disabled'", value)
    return statuses[value.lower()]


def _keys(authentication: object) -> tuple[Secret | None, Secret | None]:
    if authentication is None:
        return None, None
    document = _mapping(authentication, "authentication")
    kind = document.get("type") or "sas"
    if kind != "sas":
        raise _invalid("authentication.type", "'sas': this hub authenticates by symmetric keys", kind)
    pair = _mapping(document.get("symmetricKey") or {}, "authentication.symmetricKey")
    return _key(pair.get("primaryKey"), "primaryKey"), _key(pair.get("secondaryKey"), "secondaryKey")


def _key(value: object, name: str) -> Secret | None:
    if value is None or value == "":
        return None
    where = f"authentication.symmetricKey.{name}"
    # The value is never part of the message: it may be a real key with one character missing.
    mistake = HubRequestError("ArgumentInvalid", f"{where} must be base64 of 16 to 64 bytes", where=where)
    if not isinstance(value, str):
        raise mistake
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise mistake from error
    if len(raw) not in _KEY_BYTES:
        raise mistake
    return Secret(value)
