"""Topics and property bags of a module's messages (facts/iothub.md §2, facts/iotedge.md §3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlencode

from .settings import EdgeModule

SYSTEM_PREFIX = "$."
OUTPUT, MESSAGE_ID, CORRELATION_ID, CONTENT_TYPE, CONTENT_ENCODING = "$.on", "$.mid", "$.cid", "$.ct", "$.ce"


@dataclass(frozen=True, slots=True)
class InputTopic:
    """`properties` are the sender's own; `system` keeps its `$.` names."""

    input: str
    system: Mapping[str, str]
    properties: Mapping[str, str]


def input_filter(module: EdgeModule) -> str:
    return f"devices/{module.device_id}/modules/{module.module_id}/inputs/#"


def parse_input_topic(topic: str, module: EdgeModule) -> InputTopic | None:
    """None when the topic is no input of this module. The bag is `k=v&…`, each part percent-encoded."""
    prefix = input_filter(module).removesuffix("#")
    if not topic.startswith(prefix):
        return None
    name, _, bag = topic.removeprefix(prefix).partition("/")
    pairs = dict(_pair(part) for part in bag.strip("/").split("&") if part)
    system = {key: value for key, value in pairs.items() if key.startswith(SYSTEM_PREFIX)}
    own = {key: value for key, value in pairs.items() if key not in system}
    return InputTopic(unquote(name), system, own)


def output_topic(module: EdgeModule, system: Mapping[str, str], properties: Mapping[str, str]) -> str:
    """System properties first, then the sender's, sorted; quoted as the device SDK does it (`$` too, space as %20)."""
    bag = urlencode([*system.items(), *sorted(properties.items())], quote_via=quote, safe="")
    return f"devices/{module.device_id}/modules/{module.module_id}/messages/events/{bag}"


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return unquote(key), unquote(value)
