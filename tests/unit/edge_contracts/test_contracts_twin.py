from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.twin import (
    DESIRED_LIMIT_BYTES,
    TAGS_LIMIT_BYTES,
    TwinSection,
    merge_patch,
    twin_size_bytes,
    validate_section,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)

keys = st.sampled_from(["a", "b", "c", "é"])
leaves = st.one_of(
    st.booleans(), st.integers(-9, 9), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)
values = st.recursive(
    st.dictionaries(keys, leaves, max_size=3), lambda inner: st.dictionaries(keys, inner | leaves)
)
patches = st.recursive(
    st.dictionaries(keys, leaves | st.none(), max_size=3),
    lambda inner: st.dictionaries(keys, inner | leaves | st.none()),
)


def rfc_7396(target: Any, patch: Any) -> Any:
    """The pseudo code of RFC 7396 §2, with the `$` rule."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = rfc_7396(merged.get(key), value)
    return merged


@settings(max_examples=50, deadline=None)
@given(values, patches)
def test_merging_is_rfc_7396(target: dict[str, Any], patch: dict[str, Any]) -> None:
    before = repr((target, patch))
    assert merge_patch(target, patch) == rfc_7396(target, patch)
    assert repr((target, patch)) == before


@settings(max_examples=40, deadline=None)
@given(values, patches)
def test_merging_twice_is_merging_once(target: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@settings(max_examples=40, deadline=None)
@given(values)
def test_empty_patch_changes_nothing_and_full_patch_makes_all(target: dict[str, Any]) -> None:
    assert merge_patch(target, {}) == target
    assert merge_patch({}, target) == target
    assert merge_patch(target, dict.fromkeys(target)) == {}


def test_members_of_the_hub_are_ignored_in_patches() -> None:
    assert merge_patch({"a": 1}, {"$version": 9, "$metadata": None, "b": {"$x": 1, "c": 2}}) == {
        "a": 1,
        "b": {"c": 2},
    }


def test_patching_counts_versions_and_stamps_what_it_touches() -> None:
    first = TwinSection().replaced({"a": {"b": 1, "c": 2}, "d": 3}, NOON)
    second = first.patched({"a": {"b": 5, "c": None}, "$version": 1}, LATER)
    assert (first.version, second.version) == (2, 3)
    assert second.values == {"a": {"b": 5}, "d": 3}
    early = {"$lastUpdated": "2026-01-31T12:00:00.000000Z", "$lastUpdatedVersion": 2}
    late = {"$lastUpdated": "2026-01-31T13:00:00.000000Z", "$lastUpdatedVersion": 3}
    assert second.metadata == {**late, "a": {**late, "b": late}, "d": early}
    assert first.metadata == {**early, "a": {**early, "b": early, "c": early}, "d": early}


def test_leaf_that_becomes_an_object_and_back_keeps_matching_metadata() -> None:
    section = TwinSection().patched({"a": 1}, NOON).patched({"a": {"b": 1}}, NOON).patched({"a": 2}, LATER)
    assert section.metadata["a"] == {"$lastUpdated": "2026-01-31T13:00:00.000000Z", "$lastUpdatedVersion": 4}


@settings(max_examples=40, deadline=None)
@given(st.lists(patches, max_size=4))
def test_every_member_has_its_metadata(changes: list[dict[str, Any]]) -> None:
    section = TwinSection()
    for patch in changes:
        section = section.patched(patch, NOON)

    def check(values: Any, metadata: Any) -> None:
        assert metadata["$lastUpdatedVersion"] <= section.version
        assert {key for key in metadata if not key.startswith("$")} == (
            set(values) if isinstance(values, dict) else set()
        )
        for key in values if isinstance(values, dict) else ():
            check(values[key], metadata[key])

    if changes:
        check(section.values, section.metadata)
    assert section.version == 1 + len(changes)


def test_payloads() -> None:
    section = TwinSection().replaced({"a": 1}, NOON)
    assert section.as_desired_payload() == {"a": 1, "$version": 2}
    assert set(section.as_document()) == {"a", "$version", "$metadata"}


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({}, 0),
        ({"a": 1}, 9),
        ({"a": 1.5}, 9),
        ({"a": True}, 5),
        ({"a": None}, 1),
        ({"é": "😀"}, 6),
        ({"a": {"b": "cd"}}, 4),
        ({"a": [1, True, "xy", {"k": 1}]}, 1 + 8 + 4 + 2 + 9),
        ({"$version": 5, "$metadata": {"a": {"$lastUpdated": "x"}}, "a": {"$b": 1}}, 1),
    ],
)
def test_size_is_counted_as_iot_hub_does(value: dict[str, Any], size: int) -> None:
    assert twin_size_bytes(value) == size


def section_error(values: dict[str, Any], limit_bytes: int = DESIRED_LIMIT_BYTES) -> ContractError:
    with pytest.raises(ContractError) as caught:
        validate_section(values, limit_bytes=limit_bytes, where="properties.reported")
    return caught.value


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels > 1 else {"a": 1}


def test_what_iot_hub_takes_passes() -> None:
    allowed = {
        "$version": 3,
        "text": "x" * 4096,
        "least": -(2**52),
        "most": 2**52 - 1,
        "list": [{"a": [None, 1.5]}],
        "a" * 1024: None,
        "deep": nested(10),
    }
    validate_section(allowed, limit_bytes=DESIRED_LIMIT_BYTES, where="x")


@pytest.mark.parametrize(
    ("values", "where", "part"),
    [
        ({"a": {"b.c": 1}}, "properties.reported.a.b.c", "not 'b.c', in 'properties.reported.a'"),
        ({"a b": 1}, "properties.reported.a b", "not 'a b'"),
        ({"a": {"$b": 1}}, "properties.reported.a.$b", "not '$b'"),
        ({"a\x01": 1}, "properties.reported.a\x01", "control characters"),
        ({"": 1}, "properties.reported.", "not ''"),
        ({"a" * 1025: 1}, "properties.reported." + "a" * 1025, "1 to 1024 bytes"),
        ({"a": ["é" * 2049]}, "properties.reported.a[0]", "at most 4096 bytes long, not 4098"),
        ({"a": 2**52}, "properties.reported.a", "to 4503599627370495, not 4503599627370496"),
        ({"a": float("nan")}, "properties.reported.a", "a JSON value, not nan"),
        ({"a": b"x"}, "properties.reported.a", "a JSON value, not b'x'"),
        (nested(12), "properties.reported" + ".a" * 11, "10 levels are the most"),
    ],
)
def test_offence_is_named_by_its_path(values: dict[str, Any], where: str, part: str) -> None:
    error = section_error(values)
    assert (error.code, error.where) == ("twin", where)
    assert part in error.message


def test_size_over_the_limit_names_the_largest_members() -> None:
    values = {"small": 1, "big": ["x" * 4000] * 2, "bigger": ["y" * 4000] * 3, "middle": "z" * 500}
    error = section_error(values, TAGS_LIMIT_BYTES)
    assert error.code == "twin-size"
    assert "'properties.reported' must be at most 8192 bytes by IoT Hub's rule, not 20528" in error.message
    assert error.message.endswith("largest: bigger 12006 bytes, big 8003 bytes, middle 506 bytes")


def test_size_at_the_limit_passes() -> None:
    validate_section({"a": ["x" * 4096] * 7 + ["y" * 4095]}, limit_bytes=DESIRED_LIMIT_BYTES, where="x")
    assert section_error({"a": ["x" * 4096] * 8}).code == "twin-size"
