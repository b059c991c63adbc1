"""Device and module twins as values, and what a twin request asks for.

- `version` counts every change of the twin; its etag changes with tags and desired properties only, which are what a
  service writes under If-Match.
- Each section (desired, reported) has its own `$version`, one more per change of that section. Replacing a section by
  what it already holds is no change.
- A desired patch travels to the device with `$version` inside; a replaced section travels as the difference, with
  null for what is gone, so that a device that merges patches ends where the hub is.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from edge_contracts.errors import ContractError
from edge_contracts.twin import (
    DESIRED_LIMIT_BYTES,
    REPORTED_LIMIT_BYTES,
    TAGS_LIMIT_BYTES,
    TwinSection,
    format_time,
    merge_patch,
    validate_section,
)
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TwinRecord:
    """One twin as the hub keeps it."""

    key: IdentityKey
    tags: Mapping[str, Any]
    desired: TwinSection
    reported: TwinSection
    version: int = 1
    etag_version: int = 1

    @classmethod
    def new(cls, key: IdentityKey, now: datetime) -> TwinRecord:
        section = TwinSection(metadata={"$lastUpdated": format_time(now), "$lastUpdatedVersion": 1})
        return cls(key, {}, section, section)

    @property
    def etag(self) -> str:
        # Azure's twin etags are base64 of a big-endian 64-bit counter: AAAAAAAAAAE= is the first.
        return base64.b64encode(struct.pack(">Q", self.etag_version)).decode()

    def with_request(self, request: TwinRequest, now: datetime) -> TwinRecord:
        """The twin after a service's PATCH or PUT; the same object when nothing changes.

        Raises:
            HubRequestError: a limit is exceeded or a key or value is not allowed, naming its path.
        """
        changed = replace(
            self, tags=_new_tags(self.tags, request), desired=_new_desired(self.desired, request, now)
        )
        if changed.desired is self.desired and not difference(self.tags, changed.tags):
            return self
        return replace(changed, version=self.version + 1, etag_version=self.etag_version + 1)

    def with_reported(self, patch: Mapping[str, Any], now: datetime) -> TwinRecord:
        """The twin after a device's reported patch.

        Raises:
            HubRequestError: as for `with_request`.
        """
        _hold(patch, REPORTED_LIMIT_BYTES, "properties.reported")
        reported = self.reported.patched(patch, now)
        _hold(reported.values, REPORTED_LIMIT_BYTES, "properties.reported")
        return replace(self, reported=reported, version=self.version + 1)

    def device_payload(self) -> Values:
        """What the device gets over MQTT: both sections with `$version`, no `properties` around them."""
        return {"desired": self.desired.as_desired_payload(), "reported": self.reported.as_desired_payload()}


@dataclass(frozen=True, slots=True)
class TwinRequest:
    """A service's write: tags and desired properties to merge, or with `replaces` to put in place of the old ones."""

    tags: Mapping[str, Any]
    desired: Mapping[str, Any]
    replaces: bool = False

    @classmethod
    def parse(cls, body: object, *, replaces: bool) -> TwinRequest:
        """Read the body of `PATCH /twins/…` or, with `replaces`, of `PUT /twins/…`.

        What a body leaves out is left alone by PATCH and emptied by PUT; members that only the hub writes are ignored.
        """
        document = _object(body, "the body")
        properties = _object(document.get("properties") or {}, "properties")
        return cls(
            tags=_object(document.get("tags") or {}, "tags"),
            desired=_object(properties.get("desired") or {}, "properties.desired"),
            replaces=replaces,
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Values:
    """The merge patch that makes `new` of `old`: null for what is gone, nothing for what stays."""
    patch: Values = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            below = difference(before, value)
            if below:
                patch[key] = below
        elif key not in old or not _same_json(before, value):
            patch[key] = value
    return patch


def _same_json(left: object, right: object) -> bool:
    # Compared as text, because True == 1 in Python and differs in JSON.
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _new_tags(tags: Mapping[str, Any], request: TwinRequest) -> Mapping[str, Any]:
    _hold(request.tags, TAGS_LIMIT_BYTES, "tags")
    merged = merge_patch({} if request.replaces else tags, request.tags)
    _hold(merged, TAGS_LIMIT_BYTES, "tags")
    return merged


def _new_desired(section: TwinSection, request: TwinRequest, now: datetime) -> TwinSection:
    _hold(request.desired, DESIRED_LIMIT_BYTES, "properties.desired")
    if request.replaces:
        same = not difference(section.values, merge_patch({}, request.desired))
        changed = section if same else section.replaced(request.desired, now)
    else:
        changed = section.patched(request.desired, now) if request.desired else section
    _hold(changed.values, DESIRED_LIMIT_BYTES, "properties.desired")
    return changed


def _hold(values: Mapping[str, Any], limit_bytes: int, where: str) -> None:
    """Hold a patch or a section against IoT Hub's limits; a patch before it is merged, so that merging is safe."""
    try:
        validate_section(values, limit_bytes=limit_bytes, where=where)
    except ContractError as error:
        code = "IotHubQuotaExceeded" if error.code == "twin-size" else "ArgumentInvalid"
        raise HubRequestError(code, error.message, where=error.where) from error


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HubRequestError(
            "ArgumentInvalid", f"{where} must be a JSON object, not {type(value).__name__}", where=where
        )
    return value
