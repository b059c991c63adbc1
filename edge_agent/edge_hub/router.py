"""Which endpoints a message goes to: routes in, deliveries out, nothing else.

Rules (Azure IoT Edge, "Learn how to deploy modules and establish routes"; priority and time to live per its
`Route_priority_and_TTL` note):

- every route whose source and condition match gives one delivery to its sink;
- one endpoint gets a message once: of several matching routes to it the most urgent counts (0 before 9 before none);
- a route's time to live replaces the default; 0 means the default, a negative default means for ever;
- a message that matches no route is dropped, and counted by the caller.

>>> router = Router((Route.parse("up", "FROM /messages/modules/scorer/outputs/* INTO $upstream"),), 7200)
>>> router.deliveries(Message(b"", connection_module_id="scorer", output_name="output1"))
(Delivery(endpoint='$upstream', priority=2000000000, ttl_s=7200),)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_contracts.messages import Message
from edge_contracts.routes import BrokeredEndpoint, Route

UPSTREAM = "$upstream"
# What the edge hub gives a route without a priority: after every route that has one.
LOWEST_PRIORITY = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one endpoint; `ttl_s` is None when it never expires."""

    endpoint: str
    priority: int
    ttl_s: int | None


def input_endpoint(module: str, input_name: str) -> str:
    """The endpoint of a module's input, as routes spell it."""
    return f"/modules/{module}/inputs/{input_name}"


def parse_input_endpoint(endpoint: str) -> tuple[str, str]:
    """Module and input of an endpoint that `input_endpoint` made."""
    _, _, module, _, input_name = endpoint.split("/", 4)
    return module, input_name


class Router:
    """The routes in force; replaced as a whole when a deployment changes them."""

    def __init__(self, routes: Sequence[Route], default_ttl_s: int) -> None:
        self._routes = tuple(routes)
        self._default_ttl_s = default_ttl_s

    def deliveries(self, message: Message) -> tuple[Delivery, ...]:
        """Where `message` goes, one entry per endpoint, in the order of the routes."""
        found: dict[str, Delivery] = {}
        for route in self._routes:
            if not route.matches(message):
                continue
            delivery = self._delivery(route)
            known = found.get(delivery.endpoint)
            if known is None or delivery.priority < known.priority:
                found[delivery.endpoint] = delivery
        return tuple(found.values())

    def _delivery(self, route: Route) -> Delivery:
        sink = route.sink
        endpoint = input_endpoint(sink.module, sink.input) if isinstance(sink, BrokeredEndpoint) else UPSTREAM
        priority = LOWEST_PRIORITY if route.priority is None else route.priority
        ttl_s = route.ttl_s or self._default_ttl_s
        return Delivery(endpoint, priority, None if ttl_s < 0 else ttl_s)
