from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageDigest, ImageRef

# IoT Edge: DockerConfig.cs
IOT_EDGE_IMAGE = re.compile(r"^(([^/]*/)*)([^/:]+)(:[^/:]+)?$")
DIGEST = "sha256:" + "0123456789abcdef" * 4

components = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOSTS = ("registry.example", "registry.example:5050", "localhost", "localhost:5000", "127.0.0.1:5050")
registries = st.sampled_from([None, *HOSTS, "[::1]:5000", "$upstream:443", "$upstream", "Registry.Example"])
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.binary(max_size=8).map(ImageDigest.of)


@st.composite
def references(draw: st.DrawFn) -> ImageRef:
    registry = draw(registries)
    repository = "/".join(draw(st.lists(components, min_size=1, max_size=3)))
    first, slash, _ = repository.partition("/")
    if registry is None and slash and ("." in first or first == "localhost"):
        registry = "registry.example"
    name = draw(st.one_of(st.none(), tags, digests))
    if isinstance(name, ImageDigest):
        return ImageRef(registry, repository, None, name)
    return ImageRef(registry, repository, name)


@settings(max_examples=50, deadline=None)
@given(references())
def test_references_survive_a_round_trip_and_pass_iot_edge(ref: ImageRef) -> None:
    assert ImageRef.parse(str(ref)) == ref
    assert ref.registry == "[::1]:5000" or IOT_EDGE_IMAGE.fullmatch(str(ref))


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab0./:@$-_A[] \n", max_size=20))
def test_any_text_is_read_exactly_or_refused(text: str) -> None:
    try:
        ref = ImageRef.parse(text)
    except ContractError as error:
        assert error.code in ("image-reference", "image-digest")
    else:
        assert str(ref) == text


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("digits", None),
        ("digits:1", None),
        ("library/digits", "docker.io"),
        ("localhost/digits", "docker.io"),
        ("registry.example/digits", "registry.example"),
        ("Registry.Example:5050/a/digits:1", "registry.example:5050"),
        ("localhost:5000/digits@" + DIGEST, "localhost:5000"),
        ("$upstream:443/digits:1", "$upstream:443"),
    ],
)
def test_credentials_are_chosen_by_host(text: str, host: str | None) -> None:
    assert ImageRef.parse(text).credentials_host == host


def test_pinning_drops_the_tag() -> None:
    digest = ImageDigest.parse(DIGEST)
    pinned = ImageRef.parse("registry.example/digits:1").with_digest(digest)
    assert str(pinned) == f"registry.example/digits@{DIGEST}"
    assert pinned.is_pinned
    assert not ImageRef.parse("digits:1").is_pinned


def test_tag_and_digest_together_are_refused() -> None:
    with pytest.raises(ContractError) as caught:
        ImageRef.parse(f"registry.example/digits:1@{DIGEST}")
    assert caught.value.code == "image-reference"
    assert "expected a tag or a digest, found both, which IoT Edge refuses" in caught.value.message
    assert not IOT_EDGE_IMAGE.fullmatch(f"registry.example/digits:1@{DIGEST}")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "found an empty string"),
        ("Digits:1", "'Digits'"),
        ("a//b", "''"),
        ("digits:", "tag must be"),
        ("digits:" + "x" * 129, "up to 128"),
        ("registry.example:99999/digits", "port must be 1 to 65535, not 99999"),
        ("regis_try.example/digits", "registry must be a host name"),
        ("x" * 256, "256 characters, at most 255"),
        (" digits", "' digits'"),
        ("digits\n", "'digits\\n'"),
    ],
)
def test_bad_reference_is_named(text: str, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        ImageRef.parse(text)
    assert caught.value.code == "image-reference"
    assert part in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256:", DIGEST.upper(), DIGEST[:-1], "md5:" + "0" * 32, DIGEST + "\n"]
)
def test_bad_digest_is_named(text: str) -> None:
    with pytest.raises(ContractError, match="sha256: and 64 lower-case") as caught:
        ImageDigest.parse(text)
    assert caught.value.code == "image-digest"


def test_digest_of_bytes() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert str(ImageDigest.of(b"")) == empty
    assert ImageDigest.parse(empty) == ImageDigest.of(b"")
