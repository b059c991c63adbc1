"""Routes of an edge hub: which message goes where.

Rules (IoT Edge: `Route.g4`, `messageSources/`, `EdgeHubConfigParser.cs`):
- `[SELECT *] FROM <source> [WHERE <condition>] INTO <sink>`, keywords without case; conditions are in
  `route_condition.py`, words in `route_tokens.py`.
- Sources: `/messages/modules/{m}/outputs/{o}`, `/messages/modules/{m}`, `/messages` for every telemetry message,
  `/twinChangeNotifications`. A `*` and slashes at the end fall away; what remains is a prefix of whole parts, without case.
- Sinks: `$upstream`, or `BrokeredEndpoint("/modules/{m}/inputs/{i}")`.
- A route is a string, or an object with `route`, `priority` 0 to 9 (0 first; absent comes last) and `timeToLiveSecs`
  (0 or absent: the store-and-forward time).
- Names of routes have no `.`, `$`, `#` and space.

>>> from edge_contracts.messages import Message
>>> route = Route.parse("up", "FROM /messages/modules/scorer/outputs/* WHERE kind = 'img' INTO $upstream")
>>> route.matches(Message(b"", connection_module_id="scorer", output_name="o1", properties={"kind": "img"}))
True
>>> route.sink, route.priority
(Upstream(), 2000000000)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_contracts.errors import ContractError, shown, unexpected
from edge_contracts.messages import Message
from edge_contracts.route_condition import Condition, ConditionParser
from edge_contracts.route_tokens import Token, tokenize

LOWEST_PRIORITY = 2_000_000_000
"""The priority of a route that names none (IoT Edge: `RouteFactory.DefaultPriority`)."""
PRIORITY_MAXIMUM = 9
TTL_MAXIMUM_S = 4294967295
ROUTE_LIMIT_BYTES = 4096
"""The longest string that a twin holds."""
TWIN_CHANGE_SOURCE = "/twinChangeNotifications"

ROUTE_NAME = re.compile(r"[^.$# ]+")
_ENDPOINT = re.compile(r"/modules/([^/]+)/inputs/([^/]+)")


@dataclass(frozen=True, slots=True)
class Upstream:
    """The hub in the cloud."""

    def __str__(self) -> str:
        return "$upstream"


@dataclass(frozen=True, slots=True)
class BrokeredEndpoint:
    """An input of a module on the same device."""

    module: str
    input: str

    def __str__(self) -> str:
        return f'BrokeredEndpoint("/modules/{self.module}/inputs/{self.input}")'


Sink: TypeAlias = Upstream | BrokeredEndpoint


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed route; `source` is as written, `ttl_s` None or 0 leaves the store-and-forward time."""

    name: str
    text: str
    source: str
    condition: Condition | None
    sink: Sink
    priority: int = LOWEST_PRIORITY
    ttl_s: int | None = None

    @classmethod
    def parse(cls, name: str, document: str | Mapping[str, Any], *, where: str | None = None) -> Route:
        """Read a route of a manifest; `where` is its path inside the document.

        Raises:
            ContractError: code `route`: path, position, what was expected and what was found.
        """
        path = f"routes.{name}" if where is None else where
        if not ROUTE_NAME.fullmatch(name):
            raise unexpected(path, "named without '.', '$', '#' and space", name, code="route")
        if isinstance(document, str):
            return _parse_text(name, document, path)
        if not isinstance(document, Mapping):
            raise unexpected(path, "a route or an object with 'route'", document, code="route")
        if not isinstance(document.get("route"), str):
            raise unexpected(f"{path}.route", "a route", document.get("route"), code="route")
        priority = _integer(document, "priority", PRIORITY_MAXIMUM, path)
        ttl_s = _integer(document, "timeToLiveSecs", TTL_MAXIMUM_S, path)
        return _parse_text(
            name, document["route"], f"{path}.route", LOWEST_PRIORITY if priority is None else priority, ttl_s
        )

    def dump(self) -> str | dict[str, Any]:
        """The route as a manifest spells it: a string, unless it has a priority or a time to live."""
        if self.priority == LOWEST_PRIORITY and self.ttl_s is None:
            return self.text
        document: dict[str, Any] = {"route": self.text}
        if self.priority != LOWEST_PRIORITY:
            document["priority"] = self.priority
        if self.ttl_s is not None:
            document["timeToLiveSecs"] = self.ttl_s
        return document

    def matches(self, message: Message, *, source: str | None = None) -> bool:
        """Whether the route takes `message`; `source` overrides where it comes from (twin changes)."""
        origin = message_source(message) if source is None else source
        if not _as_prefix(origin).startswith(self._prefix):
            return False
        return self.condition is None or self.condition.matches(message)

    @property
    def source_module(self) -> str | None:
        """The module whose outputs the route takes; None for every message or twin changes."""
        parts = self.source.split("/")
        if [part.lower() for part in parts[1:3]] != ["messages", "modules"] or len(parts) < 4:
            return None
        return None if parts[3] in ("", "*") else parts[3]

    @property
    def _prefix(self) -> str:
        return _as_prefix(self.source.rstrip("*/"))


def message_source(message: Message) -> str:
    """Where a telemetry message comes from, as the source of a route spells it."""
    if message.connection_module_id is None:
        return "/messages"
    output = "" if message.output_name is None else f"/outputs/{message.output_name}"
    return f"/messages/modules/{message.connection_module_id}{output}"


def _as_prefix(source: str) -> str:
    return f"{source.rstrip('/').lower()}/"


def _integer(document: Mapping[str, Any], key: str, maximum: int, path: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise unexpected(f"{path}.{key}", f"an integer from 0 to {maximum}", value, code="route")
    return value


def _parse_text(
    name: str, text: str, path: str, priority: int = LOWEST_PRIORITY, ttl_s: int | None = None
) -> Route:
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > ROUTE_LIMIT_BYTES:
        raise ContractError(
            f"'{path}' must be at most {ROUTE_LIMIT_BYTES} bytes long, not {size_bytes}",
            code="route",
            where=path,
        )
    tokens = tokenize(text)
    start = _select(tokens, path)
    source, position = _source(text, tokens, start, path)
    condition = None
    parser = ConditionParser(
        text,
        tokens,
        where=path,
        twin_changes=_as_prefix(source.rstrip("*/")) == _as_prefix(TWIN_CHANGE_SOURCE),
    )
    parser.position = position
    if parser.token.kind == "WHERE":
        parser.position += 1
        condition = parser.condition()
    parser.expect("INTO", "an operator or INTO" if condition else "WHERE or INTO")
    sink = _sink(parser)
    parser.expect("end", "the end")
    return Route(name, text, source, condition, sink, priority, ttl_s)


def _select(tokens: tuple[Token, ...], path: str) -> int:
    """The position of the first token behind FROM."""
    position = 0
    if tokens[0].kind == "SELECT":
        if tokens[1].kind != "*":
            raise _refuse(tokens[1], "'*'", path)
        position = 2
    if tokens[position].kind != "FROM":
        raise _refuse(tokens[position], "FROM" if position else "FROM or SELECT *", path)
    return position + 1


def _source(text: str, tokens: tuple[Token, ...], position: int, path: str) -> tuple[str, int]:
    """The path that begins at a token, up to the next white space, and the position behind it."""
    first = tokens[position]
    if first.kind != "/":
        raise _refuse(first, "a source that begins with '/', as in /messages/*", path)
    end = first.end
    position += 1
    while tokens[position].kind != "end" and tokens[position].start == end:
        end = tokens[position].end
        position += 1
    return text[first.start : end], position


def _sink(parser: ConditionParser) -> Sink:
    token = parser.token
    if token.kind == "system-property" and token.text.lower() == "$upstream":
        parser.position += 1
        return Upstream()
    if token.kind != "name" or token.text.lower() != "brokeredendpoint":
        raise parser.error(token, '$upstream or BrokeredEndpoint("/modules/{module}/inputs/{input}")')
    parser.position += 1
    parser.expect("(", "'('")
    argument = parser.expect("string", 'a string, as in "/modules/{module}/inputs/{input}"')
    match = _ENDPOINT.fullmatch(argument.text[1:-1])
    if match is None:
        raise parser.error(argument, '"/modules/{module}/inputs/{input}"')
    parser.expect(")", "')'")
    return BrokeredEndpoint(match[1], match[2])


def _refuse(token: Token, expected: str, path: str) -> ContractError:
    return ContractError(
        f"'{path}' at character {token.start + 1}: expected {expected}, found {shown(token.text) if token.text else token.shown()}",
        code="route",
        where=path,
    )
