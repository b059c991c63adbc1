from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.messages import Message
from edge_contracts.routes import LOWEST_PRIORITY, BrokeredEndpoint, Route, Upstream, message_source


def module_message(module: str, output: str | None = None, **properties: str) -> Message:
    return Message(b"", connection_module_id=module, output_name=output, properties=properties)


def test_route_of_one_output_to_the_hub() -> None:
    route = Route.parse("up", "FROM /messages/modules/scorer/outputs/out1 INTO $upstream")
    assert (route.source, route.condition, route.sink) == (
        "/messages/modules/scorer/outputs/out1",
        None,
        Upstream(),
    )
    assert (route.priority, route.ttl_s, route.source_module) == (LOWEST_PRIORITY, None, "scorer")


def test_route_with_everything() -> None:
    text = (
        'select * from /messages/* /* all */ where kind = "img" AND as_number(n) > 1 '
        'into brokeredendpoint ( "/modules/scorer/inputs/in1" )'
    )
    route = Route.parse(
        "in", {"route": text, "priority": 0, "timeToLiveSecs": 0, "note": "kept by the manifest"}
    )
    assert route.sink == BrokeredEndpoint("scorer", "in1")
    assert route.condition is not None
    assert route.condition.text == 'kind = "img" AND as_number(n) > 1'
    assert (route.priority, route.ttl_s, route.source_module) == (0, 0, None)


@pytest.mark.parametrize(
    ("source", "message", "matches"),
    [
        ("/*", module_message("m", "o"), True),
        ("/messages/*", module_message("m", "o"), True),
        ("/messages", Message(b""), True),
        ("/messages/*", Message(b"", connection_device_id="leaf"), True),
        ("/messages/modules/*", Message(b""), False),
        ("/messages/modules/*", module_message("m"), True),
        ("/messages/modules/m", module_message("m", "o"), True),
        ("/messages/modules/m/*", module_message("m"), True),
        ("/messages/modules/m/*", module_message("m", "o"), True),
        ("/messages/modules/m/outputs/*", module_message("m", "o"), True),
        ("/messages/modules/m/outputs/*", module_message("m"), False),
        ("/messages/modules/m/outputs/o", module_message("m", "o"), True),
        ("/messages/modules/m/outputs/o", module_message("m", "o2"), False),
        ("/messages/modules/m", module_message("m2"), False),
        ("/messages/modules/m2", module_message("m"), False),
        ("/MESSAGES/Modules/M/outputs/O", module_message("m", "o"), True),
        ("/messages/modules/m/", module_message("m"), True),
        ("/messages/modules/*/outputs/o", module_message("m", "o"), False),
        ("/twinChangeNotifications", module_message("m", "o"), False),
    ],
)
def test_source_is_a_prefix_of_whole_parts_without_case(source: str, message: Message, matches: bool) -> None:
    assert Route.parse("r", f"FROM {source} INTO $upstream").matches(message) is matches


def test_source_of_twin_changes() -> None:
    text = "FROM /twinChangeNotifications WHERE twin_change_includes(tags.site) INTO $upstream"
    change = Message(b'{"tags":{"site":"x"}}', content_type="application/json", content_encoding="utf-8")
    route = Route.parse("r", text)
    assert route.matches(change, source="/twinChangeNotifications")
    assert not route.matches(change)


def test_sources_of_messages() -> None:
    assert message_source(Message(b"")) == "/messages"
    assert message_source(module_message("m")) == "/messages/modules/m"
    assert message_source(module_message("m", "o")) == "/messages/modules/m/outputs/o"


def test_condition_decides_and_undefined_is_no() -> None:
    route = Route.parse("r", "FROM /messages/* WHERE kind = 'img' INTO $upstream")
    assert route.matches(module_message("m", "o", kind="img"))
    assert not route.matches(module_message("m", "o", kind="text"))
    assert not route.matches(module_message("m", "o"))
    leaf = Route.parse("r", "FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId) INTO $upstream")
    assert leaf.matches(Message(b"", connection_device_id="leaf"))
    assert not leaf.matches(module_message("m"))


def test_comment_opened_by_a_source_swallows_what_lies_between() -> None:
    text = "FROM /messages/* WHERE a = 'x' INTO $upstream */ INTO BrokeredEndpoint(\"/modules/m/inputs/i\")"
    route = Route.parse("r", text)
    assert route.condition is None
    assert route.sink == BrokeredEndpoint("m", "i")


@pytest.mark.parametrize(
    ("document", "where", "part"),
    [
        ("", "routes.r", "at character 1: expected FROM or SELECT *, found the end of the route"),
        ("SELECT a FROM /* INTO $upstream", "routes.r", "at character 8: expected '*', found 'a'"),
        ("SELECT * INTO $upstream", "routes.r", "at character 10: expected FROM, found 'INTO'"),
        (
            "FROM messages INTO $upstream",
            "routes.r",
            "at character 6: expected a source that begins with '/'",
        ),
        (
            "FROM /messages/*",
            "routes.r",
            "at character 17: expected WHERE or INTO, found the end of the route",
        ),
        ("FROM /* IN $upstream", "routes.r", "at character 9: expected WHERE or INTO, found 'IN'"),
        ("FROM /* WHERE INTO $upstream", "routes.r", "at character 15: expected a property"),
        ("FROM /* WHERE a = 'x' INTO", "routes.r", "expected $upstream or BrokeredEndpoint("),
        (
            "FROM /* WHERE a = 'x' ONTO $upstream",
            "routes.r",
            "at character 23: expected an operator or INTO, found 'ONTO'",
        ),
        ("FROM /* INTO $upstreams", "routes.r", "found '$upstreams'"),
        (
            "FROM /* INTO $upstream $upstream",
            "routes.r",
            "at character 24: expected the end, found '$upstream'",
        ),
        ("FROM /* INTO Endpoint('x')", "routes.r", "found 'Endpoint'"),
        ("FROM /* INTO BrokeredEndpoint", "routes.r", "expected '(', found the end of the route"),
        ("FROM /* INTO BrokeredEndpoint(m)", "routes.r", "expected a string, as in"),
        ("FROM /* INTO BrokeredEndpoint('/modules/m')", "routes.r", "found \"'/modules/m'\""),
        ("FROM /* INTO BrokeredEndpoint('/modules/m/inputs/i'", "routes.r", "expected ')', found the end"),
        (
            "FROM /* WHERE " + "a" * 4096 + " = 'x' INTO $upstream",
            "routes.r",
            "at most 4096 bytes long, not 4131",
        ),
        (5, "routes.r", "must be a route or an object with 'route', not 5"),
        ({}, "routes.r.route", "must be a route, not None"),
        ({"route": "x"}, "routes.r.route", "'routes.r.route' at character 1: expected FROM"),
        ({"route": "FROM /* INTO $upstream", "priority": 10}, "routes.r.priority", "from 0 to 9, not 10"),
        ({"route": "FROM /* INTO $upstream", "priority": True}, "routes.r.priority", "from 0 to 9, not True"),
        ({"route": "FROM /* INTO $upstream", "priority": 1.0}, "routes.r.priority", "from 0 to 9, not 1.0"),
        (
            {"route": "FROM /* INTO $upstream", "timeToLiveSecs": -1},
            "routes.r.timeToLiveSecs",
            "from 0 to 4294967295, not -1",
        ),
    ],
)
def test_bad_route_names_path_position_expectation_and_find(document: Any, where: str, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        Route.parse("r", document)
    assert (caught.value.code, caught.value.where) == ("route", where)
    assert part in caught.value.message
    assert where in caught.value.message


@pytest.mark.parametrize("name", ["", "a.b", "a b", "$a", "a#"])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match="must be named without"):
        Route.parse(name, "FROM /* INTO $upstream")


parts = st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True)
sinks = st.one_of(
    st.just("$upstream"), st.builds('BrokeredEndpoint("/modules/{}/inputs/{}")'.format, parts, parts)
)
sources = st.one_of(
    st.sampled_from(["/*", "/messages/*"]),
    st.builds("/messages/modules/{}/outputs/{}".format, parts, st.one_of(parts, st.just("*"))),
)
priorities = st.none() | st.integers(0, 9)


@settings(max_examples=80, deadline=None)
@given(sources, sinks, priorities, st.none() | st.integers(0, 4294967295))
def test_routes_survive_a_round_trip(source: str, sink: str, priority: int | None, ttl_s: int | None) -> None:
    document = {"route": f"FROM {source} INTO {sink}", "priority": priority, "timeToLiveSecs": ttl_s}
    route = Route.parse("r", document)
    assert (route.source, str(route.sink)) == (source, sink)
    assert Route.parse("r", route.dump()) == route
    assert isinstance(route.dump(), str) == (priority is None and ttl_s is None)
