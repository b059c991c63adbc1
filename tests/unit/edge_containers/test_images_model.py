"""OCI documents as values: canonical when written, strict when read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_images import PLATFORMS

from edge_containers.errors import ImageFormatError, PlatformNotFoundError
from edge_containers.image_model import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
    document_type,
    select_platform,
)
from edge_contracts.image_ref import ImageDigest

AMD64, ARM64 = PLATFORMS
CONFIG = Descriptor(OCI_CONFIG, ImageDigest.of(b"config"), 6)
LAYER = Descriptor(OCI_LAYER_GZIP, ImageDigest.of(b"layer"), 5, {"edgewright.layer": "model"})

texts = st.text(max_size=12)
platforms = st.builds(
    Platform,
    st.just("linux"),
    st.sampled_from(["amd64", "arm64", "arm"]),
    st.sampled_from([None, "v7", "v8"]),
)
digests = st.binary(max_size=4).map(ImageDigest.of)
descriptors = st.builds(
    Descriptor,
    st.sampled_from([OCI_LAYER_GZIP, OCI_MANIFEST]),
    digests,
    st.integers(0, 1 << 50),
    st.dictionaries(texts, texts, max_size=3),
    st.none() | platforms,
)
configs = st.builds(
    ImageConfig,
    platform=platforms,
    diff_ids=st.lists(digests, max_size=4).map(tuple),
    labels=st.dictionaries(texts, texts, max_size=3),
    env=st.lists(texts, max_size=3).map(tuple),
    cmd=st.lists(texts, max_size=3).map(tuple),
    exposed_ports=st.sets(texts, max_size=3).map(lambda ports: tuple(sorted(ports))),
    user=texts,
    history=st.lists(texts, max_size=3).map(tuple),
)


@given(st.lists(descriptors, max_size=3), descriptors, st.dictionaries(texts, texts, max_size=2), configs)
def test_documents_round_trip(
    links: list[Descriptor], config: Descriptor, annotations: dict[str, str], image: ImageConfig
) -> None:
    index = ImageIndex(tuple(links), annotations)
    manifest = ImageManifest(config, tuple(links), annotations)
    assert ImageIndex.from_bytes(index.to_bytes()) == index
    assert ImageManifest.from_bytes(manifest.to_bytes()) == manifest
    assert ImageConfig.from_bytes(image.to_bytes()) == image


def test_bytes_depend_on_the_values_alone() -> None:
    one = Descriptor(OCI_LAYER_GZIP, LAYER.digest, 5, {"a": "1", "b": "ü"})
    two = Descriptor(OCI_LAYER_GZIP, LAYER.digest, 5, {"b": "ü", "a": "1"})
    assert ImageManifest(CONFIG, (one,)).to_bytes() == ImageManifest(CONFIG, (two,)).to_bytes()
    assert b" " not in ImageManifest(CONFIG, (one,)).to_bytes()


def test_arm64_v8_is_arm64() -> None:
    assert Platform.parse("linux/arm64/v8") == ARM64
    assert str(Platform.parse("linux/arm/v7")) == "linux/arm/v7"


@pytest.mark.parametrize("text", ["linux", "linux/", "/arm64", "linux/arm/v7/x", "linux/arm v7"])
def test_platform_must_have_two_or_three_parts(text: str) -> None:
    with pytest.raises(ImageFormatError, match="platform must be"):
        Platform.parse(text)


def index_of(*names: str) -> ImageIndex:
    return ImageIndex(
        tuple(
            Descriptor(OCI_MANIFEST, ImageDigest.of(name.encode()), 1, platform=Platform.parse(name))
            for name in names
        )
    )


@pytest.mark.parametrize(
    ("wanted", "selected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm", "linux/arm/v6"),
    ],
)
def test_platform_is_selected(wanted: str, selected: str) -> None:
    index = index_of("linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "unknown/unknown")
    assert select_platform(index, Platform.parse(wanted)).digest == ImageDigest.of(selected.encode())


def test_absent_platform_lists_what_there_is() -> None:
    with pytest.raises(PlatformNotFoundError) as caught:
        select_platform(index_of("linux/amd64", "linux/arm/v7", "unknown/unknown"), ARM64)
    assert str(caught.value) == "image is not built for linux/arm64: the index has linux/amd64, linux/arm/v7"


def manifest_document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ImageManifest(CONFIG, (LAYER, LAYER)).to_bytes())
    return document


def set_to(value: object, *path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to(1, "schemaVersion"), "image manifest: schemaVersion must be 2, not 1"),
        (set_to("text/plain", "mediaType"), "image manifest: mediaType must be .* not 'text/plain'"),
        (set_to([], "manifests"), "must not have a field 'manifests': it could be read as two kinds"),
        (set_to(None, "layers"), "image manifest lacks the field 'layers'"),
        (set_to({}, "layers"), "image manifest: layers must be list"),
        (set_to("x", "layers", 1), r"image manifest: layers\[1\] must be an object, not str"),
        (set_to(-1, "layers", 1, "size"), r"layers\[1\]: size must be a size of 0 or more bytes, not -1"),
        (set_to(True, "layers", 0, "size"), r"layers\[0\]: size must be int, not True"),
        (set_to("sha256:12", "layers", 1, "digest"), r"layers\[1\]: digest: .*sha256:12"),
        (set_to("md5:00", "config", "digest"), "image manifest: config: digest: .*md5:00"),
        (set_to({"a": 1}, "layers", 0, "annotations"), r"layers\[0\]: annotations.a must be str, not 1"),
        (set_to({"os": "linux"}, "config", "platform"), "config.platform lacks the field 'architecture'"),
    ],
)
def test_broken_manifest_names_the_place(change: Callable[[Any], None], message: str) -> None:
    document = manifest_document()
    change(document)
    with pytest.raises(ImageFormatError, match=message):
        ImageManifest.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (5 << 20)])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    for kind in (ImageIndex, ImageManifest, ImageConfig):
        with pytest.raises(ImageFormatError):
            kind.from_bytes(data)


def test_index_with_layers_is_refused() -> None:
    document = {**json.loads(index_of("linux/amd64").to_bytes()), "layers": []}
    with pytest.raises(ImageFormatError, match="field 'layers': it could be read as two kinds"):
        ImageIndex.from_bytes(json.dumps(document).encode())


def test_docker_manifest_is_read_as_it_is() -> None:
    document = {**manifest_document(), "mediaType": DOCKER_MANIFEST}
    data = json.dumps(document).encode()
    assert document_type(data, "manifest") == DOCKER_MANIFEST
    assert ImageManifest.from_bytes(data).layers == (LAYER, LAYER)


def test_media_type_is_told_by_fields_when_absent() -> None:
    manifest, index = manifest_document(), json.loads(index_of("linux/amd64").to_bytes())
    del manifest["mediaType"], index["mediaType"]
    assert document_type(json.dumps(manifest).encode(), "x") == OCI_MANIFEST
    assert document_type(json.dumps(index).encode(), "x") == OCI_INDEX


def test_empty_lists_may_be_null_as_go_writes_them() -> None:
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"diff_ids": []},
        "config": {"Env": None, "Labels": None},
    }
    assert ImageConfig.from_bytes(json.dumps(config).encode()).env == ()
