from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.topics import (
    C2DTopic,
    DesiredPatch,
    InputTopic,
    MethodRequest,
    MethodResponse,
    ReportedPatch,
    TelemetryTopic,
    Topic,
    TwinGet,
    TwinResponse,
    filter_matches,
    is_allowed_filter,
    parse_topic,
)

EXAMPLES: list[tuple[str, Topic]] = [
    ("devices/d/messages/events/", TelemetryTopic("d")),
    ("devices/d/messages/events/a=1", TelemetryTopic("d", None, "a=1")),
    ("devices/d/modules/m/messages/events/%24.on=o", TelemetryTopic("d", "m", "%24.on=o")),
    ("devices/d/messages/devicebound/%24.mid=1", C2DTopic("d", "%24.mid=1")),
    ("devices/d/modules/m/inputs/in1/a=1", InputTopic("d", "m", "in1", "a=1")),
    ("$iothub/twin/GET/?$rid=r-1", TwinGet("r-1")),
    ("$iothub/twin/PATCH/properties/reported/?$rid=2", ReportedPatch("2")),
    ("$iothub/twin/res/200/?$rid=2", TwinResponse(200, "2")),
    ("$iothub/twin/res/204/?$rid=2&$version=7", TwinResponse(204, "2", 7)),
    ("$iothub/twin/PATCH/properties/desired/?$version=7", DesiredPatch(7)),
    ("$iothub/methods/POST/reboot/?$rid=a0", MethodRequest("reboot", "a0")),
    ("$iothub/methods/res/404/?$rid=a0", MethodResponse(404, "a0")),
]

ids = st.text(alphabet="abc019-._:=@!',", min_size=1, max_size=8)
rids = st.text(alphabet="abc019-._=%", min_size=1, max_size=8)
bags = st.text(alphabet="abc=&%2.", max_size=8)
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
statuses = st.integers(0, 999)
versions = st.integers(0, 10**9)
topics = st.one_of(
    st.builds(TelemetryTopic, ids, st.none() | ids, bags),
    st.builds(C2DTopic, ids, bags),
    st.builds(InputTopic, ids, ids, anything, bags),
    st.builds(TwinGet, rids),
    st.builds(ReportedPatch, rids),
    st.builds(TwinResponse, statuses, rids, st.none() | versions),
    st.builds(DesiredPatch, versions),
    st.builds(MethodRequest, anything, rids),
    st.builds(MethodResponse, statuses, rids),
)


@pytest.mark.parametrize(("text", "topic"), EXAMPLES)
def test_each_topic_is_read_and_written(text: str, topic: Topic) -> None:
    assert parse_topic(text) == topic
    assert str(topic) == text


@settings(max_examples=40, deadline=None)
@given(topics)
def test_topics_survive_a_round_trip(topic: Topic) -> None:
    assert parse_topic(str(topic)) == topic


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["$iothub", "twin", "res", "GET", "?$rid=1", "", "devices", "d", "modules", "%FF"])
    )
)
def test_any_topic_is_read_or_refused(parts: list[str]) -> None:
    try:
        parse_topic("/".join(parts))
    except ContractError as error:
        assert error.code == "topic"


def test_telemetry_without_the_last_slash_and_fields_in_any_order() -> None:
    assert parse_topic("devices/d/messages/events") == TelemetryTopic("d")
    assert parse_topic("$iothub/twin/res/204/?$version=7&$rid=2") == TwinResponse(204, "2", 7)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("devices//messages/events/", "expected a topic of IoT Hub"),
        ("devices/d/messages/events/a/b", "expected a topic of IoT Hub"),
        ("$SYS/x", "expected a topic of IoT Hub"),
        ("$iothub/twin/GET/", "expected a request id"),
        ("$iothub/twin/GET/?$rid=", "expected a request id"),
        ("$iothub/twin/res/ok/?$rid=1", "status must be a number, not 'ok'"),
        ("$iothub/twin/res/²/?$rid=1", "status must be a number"),
        ("$iothub/twin/PATCH/properties/desired/?$rid=1", "expected a version"),
        ("$iothub/methods/POST/%FF/?$rid=1", "must be UTF-8"),
    ],
)
def test_bad_topic_is_named(text: str, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_topic(text)
    assert caught.value.where == text
    assert repr(text) in caught.value.message
    assert part in caught.value.message


COMMON = ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"]
DEVICE = ["devices/d/messages/devicebound/#"]
MODULE = ["devices/d/modules/m/inputs/#", "devices/d/modules/m/#"]
NOBODY = [
    "#",
    "+/d/messages/devicebound/#",
    "devices/#",
    "devices/d/#",
    "devices/+/messages/devicebound/#",
    "devices/d2/messages/devicebound/#",
    "devices/d/messages/events/#",
    "devices/d/modules/+/inputs/#",
    "devices/d/modules/m2/inputs/#",
    "devices/d/modules/#",
    "$iothub/#",
    "$iothub/twin/#",
    "$iothub/twin/GET/#",
    "$iothub/methods/res/#",
    "$SYS/#",
    "",
]


def test_device_may_subscribe_to_its_own_filters_only() -> None:
    assert [f for f in COMMON + DEVICE + MODULE + NOBODY if is_allowed_filter(f, "d")] == COMMON + DEVICE


def test_module_may_subscribe_to_its_own_filters_only() -> None:
    assert [f for f in COMMON + DEVICE + MODULE + NOBODY if is_allowed_filter(f, "d", "m")] == COMMON + MODULE


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a//c", True),
        ("+/+", "/a", True),
        ("#", "a/b", True),
        ("#", "$iothub/twin", False),
        ("+/twin", "$iothub/twin", False),
        ("$iothub/#", "$iothub/twin/res/200/?$rid=1", True),
        ("a/#/c", "a/b/c", False),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter: str, topic: str, matches: bool) -> None:
    assert filter_matches(topic_filter, topic) is matches
