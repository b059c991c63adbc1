"""The codec alone: round trips, splits, what the standard forbids, and random bytes."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_contracts.topics import filter_matches
from iot_hub.mqtt_codec import (
    MAX_PAYLOAD_BYTES,
    MAX_REMAINING_BYTES,
    Connack,
    ConnackCode,
    Connect,
    Decoder,
    Disconnect,
    MqttProtocolError,
    MqttVersionError,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
    check_topic_filter,
    encode,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
ids = st.integers(1, 65535)
filters = st.lists(st.sampled_from(["a", "", "$iothub", "+", "é"]), min_size=1, max_size=4).map("/".join)
filters = (filters | filters.map(lambda text: f"{text}/#") | st.just("#")).filter(bool)
payloads = st.binary(max_size=300)
wills = st.builds(Will, names, payloads, st.integers(0, 2), st.booleans())


connects = st.builds(
    Connect,
    texts,
    st.integers(0, 65535),
    st.booleans(),
    st.none() | texts,
    st.none() | payloads,
    st.none() | wills,
).filter(lambda connect: connect.username is not None or connect.password is None)

packets: st.SearchStrategy[Packet] = st.one_of(
    connects,
    st.builds(Connack, st.sampled_from(ConnackCode), st.booleans()),
    st.builds(Publish, names, payloads, st.just(0), st.none(), st.booleans()),
    st.builds(Publish, names, payloads, st.just(1), ids, st.booleans(), st.booleans()),
    st.builds(Puback, ids),
    st.builds(
        Subscribe, ids, st.lists(st.tuples(filters, st.integers(0, 2)), min_size=1, max_size=5).map(tuple)
    ),
    st.builds(Suback, ids, st.lists(st.sampled_from([0, 1, 2, 128]), min_size=1, max_size=5).map(tuple)),
    st.builds(Unsubscribe, ids, st.lists(filters, min_size=1, max_size=5).map(tuple)),
    st.builds(Unsuback, ids),
    st.sampled_from([Pingreq(), Pingresp(), Disconnect()]),
)


def decode(data: bytes) -> list[Packet]:
    return Decoder().feed(data)


@given(packets)
def test_every_packet_survives_a_round_trip(packet: Packet) -> None:
    assert decode(encode(packet)) == [packet]


@given(st.lists(packets, max_size=6), st.data())
def test_any_split_of_the_stream_gives_the_same_packets(sent: list[Packet], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = Decoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == sent


@given(st.lists(packets, max_size=3))
def test_one_byte_at_a_time_gives_the_same_packets(sent: list[Packet]) -> None:
    decoder = Decoder()
    received = [packet for byte in b"".join(map(encode, sent)) for packet in decoder.feed(bytes([byte]))]
    assert received == sent


@given(st.binary(max_size=200), st.integers(1, 50))
@example(b"\xf0\xff\xff\xff\xff\xff", 1)
def test_random_bytes_raise_nothing_but_the_protocol_error(data: bytes, step: int) -> None:
    decoder = Decoder()
    try:
        for start in range(0, len(data), step):
            for packet in decoder.feed(data[start : start + step]):
                assert isinstance(packet, Packet)
    except MqttProtocolError as error:
        assert error.code in ("mqtt-protocol", "mqtt-version")


@given(packets, st.data())
def test_damaged_packets_raise_nothing_but_the_protocol_error(packet: Packet, data: st.DataObject) -> None:
    damaged = bytearray(encode(packet))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except MqttProtocolError:
        pass


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x00\x00", "packet type 0"),
        (b"\xf0\x00", "packet type 15"),
        (b"\x50\x02\x00\x01", "packet type 5"),
        (b"\x80\x06\x00\x01\x00\x01a\x00", "SUBSCRIBE must have flags 2, found 0"),
        (b"\xc1\x00", "PINGREQ must have flags 0, found 1"),
        (b"\x36\x05\x00\x01a\x00\x01", "QoS 0 or 1"),
        (b"\x34\x05\x00\x01a\x00\x01", "QoS 0 or 1"),
        (b"\x38\x03\x00\x01a", "DUP"),
        (b"\x32\x05\x00\x01a\x00\x00", "packet id 0"),
        (b"\x40\x02\x00\x00", "packet id 0"),
        (b"\x40\x03\x00\x01\x00", "1 bytes too many"),
        (b"\x40\x01\x00", "ends early"),
        (b"\x30\x04\x00\x02\xff\xfe", "not UTF-8"),
        (b"\x30\x05\x00\x03\xed\xa0\x80", "not UTF-8"),
        (b"\x30\x03\x00\x01\x00", "U+0000"),
        (b"\x30\x02\x00\x00", "at least one character"),
        (b"\x30\x05\x00\x03a/#", "no wildcard, found 'a/#'"),
        (b"\x30\x03\x00\x01+", "no wildcard"),
        (b"\x30\x03\x00\x05a", "ends early"),
        (b"\x30\xff\xff\xff\xff\x01", "more than 4 bytes"),
        (b"\x30\xff\xff\xff\x7f", "at most"),
        (b"\x82\x02\x00\x01", "at least one topic filter"),
        (b"\x82\x06\x00\x01\x00\x01a\x03", "QoS 3"),
        (b"\x82\x08\x00\x01\x00\x03a#b\x00", "topic filter"),
        (b"\xa2\x02\x00\x01", "at least one topic filter"),
        (b"\x90\x03\x00\x01\x03", "return codes"),
        (b"\x20\x02\x02\x00", "CONNACK"),
        (b"\x20\x02\x00\x06", "CONNACK"),
    ],
)
def test_malformed_packets_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(MqttProtocolError, match=re.escape(said)):
        decode(data)


@pytest.mark.parametrize("flags", [0x01, 0x08, 0x20, 0x1C, 0x40])
def test_connect_with_impossible_flags_is_refused(flags: int) -> None:
    with pytest.raises(MqttProtocolError, match="impossible flags"):
        decode(b"\x10\x0d\x00\x04MQTT\x04" + bytes([flags]) + b"\x00\x3c\x00\x01a")


@pytest.mark.parametrize("head", [b"\x00\x04MQTT\x05", b"\x00\x06MQIsdp\x03", b"\x00\x04mqtt\x04"])
def test_other_protocol_versions_are_told_apart(head: bytes) -> None:
    body = head + b"\x02\x00\x3c\x00\x01a"
    with pytest.raises(MqttVersionError, match=r"3\.1\.1"):
        decode(b"\x10" + bytes([len(body)]) + body)


def test_the_largest_message_is_accepted_and_one_byte_more_is_not() -> None:
    largest = Publish("t" * 65535, bytes(MAX_PAYLOAD_BYTES), 1, 7)
    data = encode(largest)
    assert decode(data) == [largest]
    with pytest.raises(ValueError, match="payload must be at most"):
        encode(Publish("t", bytes(MAX_PAYLOAD_BYTES + 1)))
    with pytest.raises(MqttProtocolError, match=f"at most {MAX_REMAINING_BYTES} bytes"):
        decode(b"\x30" + b"\x84\x80\x14" + bytes(10))


def test_an_oversize_payload_behind_a_short_topic_is_refused() -> None:
    body = b"\x00\x01t" + bytes(MAX_PAYLOAD_BYTES + 1)
    length = len(body)
    header = bytes([0x30, length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    with pytest.raises(MqttProtocolError, match="payload must be at most"):
        decode(header + body)


def test_a_length_over_the_bound_is_refused_before_the_bytes_come() -> None:
    with pytest.raises(MqttProtocolError, match="at most 100 bytes here, found 127"):
        Decoder(max_remaining_bytes=100).feed(b"\x10\x7f")


def test_packets_before_a_malformed_one_are_kept_and_the_decoder_stays_failed() -> None:
    decoder = Decoder()
    with pytest.raises(MqttProtocolError) as caught:
        decoder.feed(encode(Pingreq()) + b"\x00\x00" + encode(Pingreq()))
    assert caught.value.packets == (Pingreq(),)
    with pytest.raises(MqttProtocolError, match="packet type 0"):
        decoder.feed(encode(Pingreq()))


@pytest.mark.parametrize(
    "packet",
    [
        Publish("a/+", b""),
        Publish("", b""),
        Publish("a", b"", qos=1),
        Publish("a", b"", qos=0, packet_id=3),
        Publish("a", b"", qos=2, packet_id=3),
        Publish("é" * 40000, b""),
        Puback(0),
        Puback(65536),
    ],
)
def test_packets_that_cannot_be_written_are_the_callers_mistake(packet: Packet) -> None:
    with pytest.raises(ValueError, match=r"must|has"):
        encode(packet)


def test_secrets_and_payloads_are_not_in_reprs() -> None:
    shown = repr(Connect("d", username="u", password=b"hunter2")) + repr(Publish("t", b"hunter2"))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("topic_filter", "topic", "selected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("#", "a/b", True),
        ("#", "$iothub/twin", False),
        ("+/twin", "$iothub/twin", False),
        ("$iothub/#", "$iothub/twin", True),
        ("$iothub/twin/res/#", "$iothub/twin/res/200/?$rid=1", True),
    ],
)
def test_filters_select_topics_as_the_standard_says(topic_filter: str, topic: str, selected: bool) -> None:
    assert filter_matches(topic_filter, topic) is selected


@pytest.mark.parametrize("topic_filter", ["", "#/a", "a#", "a/b#", "a+", "a/+b/c", "##", "a/+#"])
def test_bad_filters_are_refused(topic_filter: str) -> None:
    with pytest.raises(MqttProtocolError, match="topic filter"):
        check_topic_filter(topic_filter)
