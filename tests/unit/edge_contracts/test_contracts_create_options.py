from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.create_options import CreateOptions, join_create_options, split_create_options
from edge_contracts.errors import ContractError


@pytest.mark.parametrize(
    ("characters", "pieces"),
    [(0, 1), (1, 1), (511, 1), (512, 1), (513, 2), (4096, 8), (51199, 100), (51200, 100)],
)
def test_text_is_cut_in_pieces_of_512_characters(characters: int, pieces: int) -> None:
    text = ("0123456789" * 5120)[:characters]
    settings = split_create_options(text)
    assert len(settings) == pieces
    assert all(len(piece) <= 512 for piece in settings.values())
    assert list(settings)[:2] == ["createOptions", "createOptions01"][:pieces]
    assert list(settings)[-1] == ("createOptions99" if pieces == 100 else list(settings)[pieces - 1])
    assert join_create_options(settings) == text


def test_more_than_100_pieces_are_refused() -> None:
    with pytest.raises(ContractError, match="at most 100 pieces of 512 characters, not 51201 characters"):
        split_create_options("x" * 51201)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=2000), st.randoms())
def test_pieces_join_in_any_order_and_any_case(text: str, random: Any) -> None:
    members = list(split_create_options(text).items())
    random.shuffle(members)
    assert join_create_options({"image": "x", **dict(members)}) == text
    assert join_create_options({name.lower(): piece for name, piece in members}) == text


@pytest.mark.parametrize(
    ("names", "where", "part"),
    [
        (["createOptions01"], "s.createOptions01", "'createOptions' next, not 'createOptions01'"),
        (["createOptions", "createOptions02"], "s.createOptions02", "'createOptions01' next"),
        (
            ["createOptions", "createOptions01", "createOptions1"],
            "s.createOptions1",
            "'createOptions02' next",
        ),
        (["createOptions00"], "s.createOptions00", "'createOptions' next"),
    ],
)
def test_gap_is_named(names: list[str], where: str, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        join_create_options(dict.fromkeys(names, "{}"), where="s")
    assert caught.value.where == where
    assert part in caught.value.message


def test_piece_that_is_no_text_is_named() -> None:
    with pytest.raises(ContractError, match=r"'s.createOptions' must be JSON text, not \{\}"):
        join_create_options({"createOptions": {}}, where="s")


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_no_text_means_no_options(text: str) -> None:
    assert CreateOptions.from_text(text).document == {}


def options(bindings: Any) -> CreateOptions:
    return CreateOptions.parse(
        {"HostConfig": {"PortBindings": bindings, "Memory": 1}, "Unknown": {"kept": True}}
    )


def test_port_on_the_host_is_read_and_unknown_members_are_kept() -> None:
    parsed = options(
        {"5001/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8501"}], "9/udp": [{"HostPort": "90"}]}
    )
    assert parsed.host_port_for(5001) == ("127.0.0.1", 8501)
    assert parsed.host_port_for(9) == (None, None)
    assert parsed.host_port_for(9, "udp") == (None, 90)
    assert parsed.document["Unknown"] == {"kept": True}


@pytest.mark.parametrize(
    "bindings",
    [None, {}, {"5001/tcp": None}, {"5001/tcp": []}, {"5001/tcp": [{}]}, {"5001/tcp": [{"HostPort": "0"}]}],
)
def test_port_on_the_host_may_be_open(bindings: Any) -> None:
    assert options(bindings).host_port_for(5001) == (None, None)
    assert CreateOptions.parse({}).host_port_for(5001) == (None, None)


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ([], "o"),
        ({"HostConfig": []}, None),
        ({"HostConfig": {"PortBindings": ["5001/tcp"]}}, "o.HostConfig.PortBindings"),
        ({"HostConfig": {"PortBindings": {"5001/tcp": "8501"}}}, "o.HostConfig.PortBindings.5001/tcp"),
        ({"HostConfig": {"PortBindings": {"5001/tcp": ["8501"]}}}, "o.HostConfig.PortBindings.5001/tcp"),
        (
            {"HostConfig": {"PortBindings": {"5/tcp": [{"HostPort": 5}]}}},
            "o.HostConfig.PortBindings.5/tcp.HostPort",
        ),
        (
            {"HostConfig": {"PortBindings": {"5/tcp": [{"HostPort": "x"}]}}},
            "o.HostConfig.PortBindings.5/tcp.HostPort",
        ),
        (
            {"HostConfig": {"PortBindings": {"5/tcp": [{"HostPort": "65536"}]}}},
            "o.HostConfig.PortBindings.5/tcp.HostPort",
        ),
    ],
)
def test_member_of_the_wrong_shape_is_named(document: Any, where: str | None) -> None:
    if where is None:
        assert CreateOptions.parse(document).host_port_for(1) == (None, None)
        return
    with pytest.raises(ContractError) as caught:
        CreateOptions.from_text(json.dumps(document), where="o")
    assert caught.value.where == where


def test_text_that_is_no_json_is_named_with_its_position() -> None:
    with pytest.raises(ContractError, match=r"'o' must be JSON: .* line 1 column 15"):
        CreateOptions.from_text('{"HostConfig":', where="o")
