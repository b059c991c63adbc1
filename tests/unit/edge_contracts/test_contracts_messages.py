from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.messages import SYSTEM_PROPERTIES, Message, decode_property_bag, encode_property_bag

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
awkward = st.sampled_from(["+", "%", "%2B", "a b", "&", "=", "#", "/", "?", "$", "é", "😀", "", "\x00"])
values = st.one_of(awkward, text)
wire_keys = {key for key, _ in SYSTEM_PROPERTIES}
names = values.filter(lambda name: name and name not in wire_keys)
fields = [name for _, name in SYSTEM_PROPERTIES]


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=8),
    st.dictionaries(st.sampled_from(fields), values),
    st.dictionaries(names, values, max_size=4),
)
def test_bags_survive_a_round_trip(body: bytes, system: dict[str, str], properties: dict[str, str]) -> None:
    message = Message(body, **system, properties=properties)
    bag = encode_property_bag(message)
    assert decode_property_bag(bag, body) == message
    assert not set(bag) & set("+#/? \x00")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="a=&%2$.é+/?", max_size=12))
def test_any_bag_is_read_or_refused(bag: str) -> None:
    try:
        decode_property_bag(bag)
    except ContractError as error:
        assert error.code == "property-bag"


def test_plus_is_itself_and_space_is_percent_20() -> None:
    assert decode_property_bag("a=1+2%203").properties == {"a": "1+2 3"}
    assert encode_property_bag(Message(b"", properties={"a": "1+2 3"})) == "a=1%2B2%203"


def test_system_properties_come_first_and_both_spellings_are_read() -> None:
    message = Message(b"", output_name="o", content_type="application/json", properties={"b": "2", "a": "1"})
    assert encode_property_bag(message) == "%24.on=o&%24.ct=application%2Fjson&a=1&b=2"
    assert decode_property_bag("$.on=o&%24.ct=application%2Fjson&b=2&a=1") == message


def test_input_name_is_no_part_of_the_bag() -> None:
    assert encode_property_bag(Message(b"", input_name="input1")) == ""


def test_unknown_system_properties_are_kept() -> None:
    message = decode_property_bag("%24.sub=x")
    assert message.properties == {"$.sub": "x"}
    assert decode_property_bag(encode_property_bag(message)) == message


def test_key_without_value_question_mark_and_last_slash() -> None:
    assert decode_property_bag("?a&b=/").properties == {"a": "", "b": ""}


def test_bad_bags_are_named() -> None:
    with pytest.raises(ContractError, match=r"name must not be empty, in the property bag '=1'"):
        decode_property_bag("=1")
    with pytest.raises(ContractError, match=r"must be UTF-8, not '%FF', in the property bag 'a=%FF'"):
        decode_property_bag("a=%FF")
    with pytest.raises(ContractError, match="name must not be empty"):
        encode_property_bag(Message(b"", properties={"": "1"}))
    with pytest.raises(ContractError, match="must be Unicode text"):
        encode_property_bag(Message(b"", properties={"a": "\ud800"}))
