"""Desired and reported properties: merge patch, `$version`, `$metadata`, limits.

Rules (IoT Hub, "Understand and use device twins"; RFC 7396):
- A patch merges objects, replaces everything else, and null deletes. Members whose key begins with `$` belong to the
  hub and are ignored in patches.
- Every change of a section adds one to its `$version`; `$metadata` holds `$lastUpdated` and `$lastUpdatedVersion` for
  the section and for every member below it.
- Size is the UTF-8 length of keys and strings, 8 for a number, 4 for a boolean, 0 for null; `$` members do not count.
  At most 32768 bytes each for desired and reported, 8192 for tags.
- Keys: 1 to 1024 bytes without control characters, `.`, space and `$`. Strings: at most 4096 bytes. Objects: at most 10
  deep. Integers: -4503599627370496 to 4503599627370495.

>>> merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None}, "$version": 4})
{'a': {'c': 2}}
>>> twin_size_bytes({"level": "info", "n": 1, "on": True, "$version": 9})
24
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edge_contracts.errors import ContractError, shown, unexpected

DESIRED_LIMIT_BYTES = 32768
REPORTED_LIMIT_BYTES = 32768
TAGS_LIMIT_BYTES = 8192
KEY_LIMIT_BYTES = 1024
STRING_LIMIT_BYTES = 4096
DEPTH_LIMIT = 10
INTEGER_MINIMUM = -(2**52)
INTEGER_MAXIMUM = 2**52 - 1

_FORBIDDEN_IN_KEYS = re.compile(r"[\x00-\x20\x7f-\x9f.$]")

Values = dict[str, Any]
"""The members of a section: JSON values."""


def merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> Values:
    """`target` with `patch` merged in, as a new object; neither argument changes."""
    merged = dict(target)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge_patch(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


@dataclass(frozen=True, slots=True)
class TwinSection:
    """Desired properties, reported properties or tags with their version; `values` holds no `$` member."""

    values: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1

    def patched(self, patch: Mapping[str, Any], now: datetime) -> TwinSection:
        """The section after a merge patch at `now` (aware)."""
        stamp = _stamp(now, self.version + 1)
        return TwinSection(
            merge_patch(self.values, patch), _patched_metadata(self.metadata, patch, stamp), self.version + 1
        )

    def replaced(self, values: Mapping[str, Any], now: datetime) -> TwinSection:
        """The section after its members were replaced as a whole at `now` (aware)."""
        stamp = _stamp(now, self.version + 1)
        return TwinSection(merge_patch({}, values), _patched_metadata({}, values, stamp), self.version + 1)

    def as_desired_payload(self) -> Values:
        """The members and `$version`: what a device gets over MQTT."""
        return {**self.values, "$version": self.version}

    def as_document(self) -> Values:
        """The members, `$metadata` and `$version`: what the service API answers."""
        return {**self.values, "$metadata": dict(self.metadata), "$version": self.version}


def twin_size_bytes(values: Any) -> int:
    """Size of a value by IoT Hub's rule; of a member, add the UTF-8 length of its key."""
    if isinstance(values, Mapping):
        members = ((key, value) for key, value in values.items() if not key.startswith("$"))
        return sum(_utf8_length(key) + twin_size_bytes(value) for key, value in members)
    if isinstance(values, list | tuple):
        return sum(twin_size_bytes(item) for item in values)
    if isinstance(values, str):
        return _utf8_length(values)
    if isinstance(values, bool):
        return 4
    return 0 if values is None else 8


def validate_section(values: Mapping[str, Any], *, limit_bytes: int, where: str) -> None:
    """Hold a section, or a patch of one, against IoT Hub's limits; `$version` and `$metadata` at the top pass.

    Raises:
        ContractError: code `twin` or `twin-size`; `where` is the path of the first offence below `where`.
    """
    for key, value in values.items():
        if not key.startswith("$"):
            _validate_member(key, value, where, depth=1)
    size_bytes = twin_size_bytes(values)
    if size_bytes > limit_bytes:
        raise ContractError(
            f"'{where}' must be at most {limit_bytes} bytes by IoT Hub's rule, not {size_bytes}; "
            f"largest: {largest_members(values)}",
            code="twin-size",
            where=where,
        )


def largest_members(values: Mapping[str, Any], count: int = 3) -> str:
    """The largest members, for messages: `a 900 bytes, b 12 bytes`."""
    sizes = {key: _utf8_length(key) + twin_size_bytes(value) for key, value in values.items()}
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:count]
    return ", ".join(f"{key} {size} bytes" for key, size in largest)


def _validate_member(key: str, value: Any, where: str, depth: int) -> None:
    path = f"{where}.{key}"
    if not key or _utf8_length(key) > KEY_LIMIT_BYTES or _FORBIDDEN_IN_KEYS.search(key):
        raise ContractError(
            f"Key must be 1 to {KEY_LIMIT_BYTES} bytes without '.', '$', space or control characters, "
            f"not {shown(key)}, in '{where}'",
            code="twin",
            where=path,
        )
    _validate_value(value, path, depth)


def _validate_value(value: Any, path: str, depth: int) -> None:
    if isinstance(value, Mapping | list | tuple) and depth > DEPTH_LIMIT:
        raise unexpected(path, f"a plain value, as {DEPTH_LIMIT} levels are the most", value, code="twin")
    if isinstance(value, Mapping):
        for key, below in value.items():
            _validate_member(key, below, path, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _validate_value(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        if _utf8_length(value) > STRING_LIMIT_BYTES:
            raise ContractError(
                f"'{path}' must be at most {STRING_LIMIT_BYTES} bytes long, not {_utf8_length(value)}",
                code="twin",
                where=path,
            )
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not INTEGER_MINIMUM <= value <= INTEGER_MAXIMUM:
            raise unexpected(
                path, f"an integer from {INTEGER_MINIMUM} to {INTEGER_MAXIMUM}", value, code="twin"
            )
    elif not (isinstance(value, float) and math.isfinite(value)):
        raise unexpected(path, "a JSON value", value, code="twin")


def _patched_metadata(metadata: Mapping[str, Any], patch: Mapping[str, Any], stamp: Values) -> Values:
    """The metadata of an object after `patch`: what the patch touches carries `stamp`, as does the object itself."""
    updated = {**metadata, **stamp}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            updated.pop(key, None)
        elif isinstance(value, Mapping):
            below = updated.get(key)
            updated[key] = _patched_metadata(below if isinstance(below, Mapping) else {}, value, stamp)
        else:
            updated[key] = dict(stamp)
    return updated


def _stamp(now: datetime, version: int) -> Values:
    return {"$lastUpdated": format_time(now), "$lastUpdatedVersion": version}


def format_time(now: datetime) -> str:
    """An aware time as IoT Hub writes it: `2026-01-31T08:00:00.000000Z`."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utf8_length(text: str) -> int:
    # A lone surrogate cannot be sent; counting it as UTF-8 would spell it keeps the size a pure number.
    return len(text.encode("utf-8", "surrogatepass"))
