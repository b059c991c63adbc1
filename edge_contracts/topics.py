"""The MQTT topics of IoT Hub and of an edge hub, as values.

Rules (IoT Hub, "Communicate with IoT Hub using the MQTT protocol"):

    telemetry          devices/{d}/messages/events/{bag}         devices/{d}/modules/{m}/messages/events/{bag}
    cloud to device    devices/{d}/messages/devicebound/{bag}
    module input       devices/{d}/modules/{m}/inputs/{input}/{bag}
    twin get           $iothub/twin/GET/?$rid={rid}
    reported patch     $iothub/twin/PATCH/properties/reported/?$rid={rid}
    twin response      $iothub/twin/res/{status}/?$rid={rid}[&$version={version}]
    desired patch      $iothub/twin/PATCH/properties/desired/?$version={version}
    method request     $iothub/methods/POST/{name}/?$rid={rid}
    method response    $iothub/methods/res/{status}/?$rid={rid}

- Device and module ids are never encoded; method and input names are; a request id is opaque, without `&`.
- Any other topic closes the connection: `parse_topic` raises. An identity may subscribe to the filters of
  `allowed_filters` only.
- `filter_matches` is MQTT 3.1.1 §4.7: a leading wildcard does not match a topic that begins with `$`.

>>> parse_topic("devices/d/modules/m/messages/events/%24.on=out")
TelemetryTopic(device='d', module='m', bag='%24.on=out')
>>> str(TwinResponse(204, "7", version=3))
'$iothub/twin/res/204/?$rid=7&$version=3'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote

from edge_contracts.errors import ContractError, shown


@dataclass(frozen=True, slots=True)
class TelemetryTopic:
    """Device or module to hub; `bag` is the encoded property bag."""

    device: str
    module: str | None = None
    bag: str = ""

    def __str__(self) -> str:
        return f"{_identity_prefix(self.device, self.module)}/messages/events/{self.bag}"


@dataclass(frozen=True, slots=True)
class C2DTopic:
    """Hub to device."""

    device: str
    bag: str = ""

    def __str__(self) -> str:
        return f"devices/{self.device}/messages/devicebound/{self.bag}"


@dataclass(frozen=True, slots=True)
class InputTopic:
    """Edge hub to an input of a module."""

    device: str
    module: str
    input: str
    bag: str = ""

    def __str__(self) -> str:
        return f"devices/{self.device}/modules/{self.module}/inputs/{quote(self.input, safe='')}/{self.bag}"


@dataclass(frozen=True, slots=True)
class TwinGet:
    """Device to hub: asks for the whole twin."""

    rid: str

    def __str__(self) -> str:
        return f"$iothub/twin/GET/?$rid={self.rid}"


@dataclass(frozen=True, slots=True)
class ReportedPatch:
    """Device to hub: a merge patch of the reported properties."""

    rid: str

    def __str__(self) -> str:
        return f"$iothub/twin/PATCH/properties/reported/?$rid={self.rid}"


@dataclass(frozen=True, slots=True)
class TwinResponse:
    """Hub to device: answers `TwinGet` and `ReportedPatch`; `version` is of the reported properties."""

    status: int
    rid: str
    version: int | None = None

    def __str__(self) -> str:
        version = "" if self.version is None else f"&$version={self.version}"
        return f"$iothub/twin/res/{self.status}/?$rid={self.rid}{version}"


@dataclass(frozen=True, slots=True)
class DesiredPatch:
    """Hub to device: a merge patch of the desired properties."""

    version: int

    def __str__(self) -> str:
        return f"$iothub/twin/PATCH/properties/desired/?$version={self.version}"


@dataclass(frozen=True, slots=True)
class MethodRequest:
    """Hub to device."""

    name: str
    rid: str

    def __str__(self) -> str:
        return f"$iothub/methods/POST/{quote(self.name, safe='')}/?$rid={self.rid}"


@dataclass(frozen=True, slots=True)
class MethodResponse:
    """Device to hub."""

    status: int
    rid: str

    def __str__(self) -> str:
        return f"$iothub/methods/res/{self.status}/?$rid={self.rid}"


Topic: TypeAlias = (
    TelemetryTopic
    | C2DTopic
    | InputTopic
    | TwinGet
    | ReportedPatch
    | TwinResponse
    | DesiredPatch
    | MethodRequest
    | MethodResponse
)

_SERVICE_FILTERS = frozenset(
    {"$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"}
)


def parse_topic(text: str) -> Topic:
    """Read a topic name.

    Raises:
        ContractError: code `topic`: no topic of IoT Hub, or one with a missing part.
    """
    parts = text.split("/")
    for pattern, build in _PATTERNS:
        values = _match(pattern, parts)
        if values is not None:
            return build(text, values)
    raise _refuse(text, "expected a topic of IoT Hub")


def allowed_filters(device: str, module: str | None = None) -> frozenset[str]:
    """The filters which this identity may subscribe to, in full."""
    own = f"devices/{device}"
    if module is None:
        return _SERVICE_FILTERS | {f"{own}/messages/devicebound/#"}
    return _SERVICE_FILTERS | {f"{own}/modules/{module}/inputs/#", f"{own}/modules/{module}/#"}


def is_allowed_filter(topic_filter: str, device: str, module: str | None = None) -> bool:
    """Whether this identity may subscribe to `topic_filter`."""
    return topic_filter in allowed_filters(device, module)


def filter_matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to `topic_filter` receives what is published to `topic`."""
    wanted, found = topic_filter.split("/"), topic.split("/")
    if found[0].startswith("$") and wanted[0] in ("#", "+"):
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return index == len(wanted) - 1
        if index >= len(found) or level not in ("+", found[index]):
            return False
    return len(wanted) == len(found)


# Patterns are levels: a literal, or "{}" for any non-empty level, or "{?}" for a last level that may be empty or absent.
_PATTERNS: tuple[tuple[tuple[str, ...], Callable[[str, list[str]], Topic]], ...] = (
    (
        ("devices", "{}", "messages", "events", "{?}"),
        lambda text, values: TelemetryTopic(values[0], None, values[1]),
    ),
    (
        ("devices", "{}", "modules", "{}", "messages", "events", "{?}"),
        lambda text, values: TelemetryTopic(values[0], values[1], values[2]),
    ),
    (
        ("devices", "{}", "messages", "devicebound", "{?}"),
        lambda text, values: C2DTopic(values[0], values[1]),
    ),
    (
        ("devices", "{}", "modules", "{}", "inputs", "{}", "{?}"),
        lambda text, values: InputTopic(values[0], values[1], _unquoted(text, values[2]), values[3]),
    ),
    (
        ("$iothub", "twin", "GET", "{?}"),
        lambda text, values: TwinGet(_rid(text, values[0])),
    ),
    (
        ("$iothub", "twin", "PATCH", "properties", "reported", "{?}"),
        lambda text, values: ReportedPatch(_rid(text, values[0])),
    ),
    (
        ("$iothub", "twin", "res", "{}", "{?}"),
        lambda text, values: TwinResponse(
            _number(text, "status", values[0]), _rid(text, values[1]), _optional_version(text, values[1])
        ),
    ),
    (
        ("$iothub", "twin", "PATCH", "properties", "desired", "{?}"),
        lambda text, values: DesiredPatch(_version(text, values[0])),
    ),
    (
        ("$iothub", "methods", "POST", "{}", "{?}"),
        lambda text, values: MethodRequest(_unquoted(text, values[0]), _rid(text, values[1])),
    ),
    (
        ("$iothub", "methods", "res", "{}", "{?}"),
        lambda text, values: MethodResponse(_number(text, "status", values[0]), _rid(text, values[1])),
    ),
)


def _match(pattern: tuple[str, ...], parts: list[str]) -> list[str] | None:
    if len(parts) == len(pattern) - 1:
        parts = [*parts, ""]
    if len(parts) != len(pattern):
        return None
    values: list[str] = []
    for wanted, found in zip(pattern, parts, strict=True):
        if wanted == "{?}" or (wanted == "{}" and found):
            values.append(found)
        elif wanted != found:
            return None
    return values


def _query(text: str, part: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in part.removeprefix("?").split("&"))
    return {unquote(key): value for key, _, value in pairs}


def _rid(text: str, part: str) -> str:
    rid = _query(text, part).get("$rid", "")
    if not rid:
        raise _refuse(text, "expected a request id, as in ?$rid=1")
    return rid


def _optional_version(text: str, part: str) -> int | None:
    version = _query(text, part).get("$version")
    return None if version is None else _number(text, "$version", version)


def _version(text: str, part: str) -> int:
    version = _optional_version(text, part)
    if version is None:
        raise _refuse(text, "expected a version, as in ?$version=1")
    return version


def _number(text: str, name: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise _refuse(text, f"{name} must be a number, not {shown(digits)}")
    return int(digits)


def _unquoted(text: str, part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise _refuse(text, f"percent-encoding must be UTF-8, not {shown(part)}") from error


def _identity_prefix(device: str, module: str | None) -> str:
    return f"devices/{device}" if module is None else f"devices/{device}/modules/{module}"


def _refuse(text: str, expected: str) -> ContractError:
    return ContractError(f"Topic {shown(text)}: {expected}", code="topic", where=text)
