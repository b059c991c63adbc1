"""Routes decide: one delivery per endpoint, the most urgent one, and nothing for what no route takes."""

from __future__ import annotations

from edge_agent.edge_hub.router import (
    LOWEST_PRIORITY,
    UPSTREAM,
    Delivery,
    Router,
    input_endpoint,
    parse_input_endpoint,
)
from edge_contracts.messages import Message
from edge_contracts.routes import Route

FROM_SCORER = Message(b"", connection_device_id="d", connection_module_id="scorer", output_name="output1")
FROM_DEVICE = Message(b"", connection_device_id="d", properties={"kind": "digit"})


def router(*routes: tuple[str, object], default_ttl_s: int = 7200) -> Router:
    return Router([Route.parse(name, text) for name, text in routes], default_ttl_s)


def test_a_module_output_goes_upstream() -> None:
    found = router(("up", "FROM /messages/modules/scorer/outputs/* INTO $upstream")).deliveries(FROM_SCORER)
    assert found == (Delivery(UPSTREAM, LOWEST_PRIORITY, 7200),)


def test_a_device_message_goes_to_an_input_by_its_properties() -> None:
    text = 'FROM /messages/* WHERE kind = "digit" INTO BrokeredEndpoint("/modules/scorer/inputs/input1")'
    found = router(("in", text)).deliveries(FROM_DEVICE)
    assert found == (Delivery(input_endpoint("scorer", "input1"), LOWEST_PRIORITY, 7200),)
    assert parse_input_endpoint(found[0].endpoint) == ("scorer", "input1")


def test_no_route_means_no_delivery() -> None:
    assert router(("up", "FROM /messages/modules/other/* INTO $upstream")).deliveries(FROM_SCORER) == ()


def test_an_endpoint_gets_a_message_once_by_its_most_urgent_route() -> None:
    found = router(
        ("slow", {"route": "FROM /messages/* INTO $upstream", "priority": 9}),
        ("fast", {"route": "FROM /messages/* INTO $upstream", "priority": 1, "timeToLiveSecs": 60}),
        ("plain", "FROM /messages/* INTO $upstream"),
    ).deliveries(FROM_SCORER)
    assert found == (Delivery(UPSTREAM, 1, 60),)


def test_a_negative_default_keeps_for_ever_and_zero_means_the_default() -> None:
    route = ("up", {"route": "FROM /messages/* INTO $upstream", "timeToLiveSecs": 0})
    assert router(route, default_ttl_s=-1).deliveries(FROM_SCORER)[0].ttl_s is None
    assert router(route, default_ttl_s=5).deliveries(FROM_SCORER)[0].ttl_s == 5
