"""An exported file, as Debian's Docker engine and skopeo read it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from docker_engine import DockerEngine
from registry_images import PLATFORMS, make_tar, put_image

from edge_containers.errors import PlatformNotFoundError
from edge_containers.image_archive import add_images, platform_manifest, read_manifest
from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_LAYER_TAR,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageManifest,
    Platform,
)
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest

LAYERS = {"etc/one": b"one", "etc/two": b"two" * 1000}


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


def write(store: ContentStore, path: Path, images: dict[str, Descriptor]) -> Path:
    with tarfile.open(path, "w|") as tar:
        add_images(tar, store, images)
    return path


def test_docker_loads_every_name_of_the_file(
    store: ContentStore, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    index = put_image(store, LAYERS)
    one = platform_manifest(store, index, PLATFORMS[0])
    path = write(store, tmp_path / "image.tar", {"export-test/digits:7": index, "export-test/one:1": one})
    docker_engine.run("load", "-i", str(path))
    config = read_manifest(store, one).config.digest
    for name in ("export-test/digits:7", "export-test/one:1"):
        assert docker_engine.run("image", "inspect", "--format", "{{.Id}}", name) == str(config)
    docker_engine.run("rmi", "export-test/digits:7", "export-test/one:1")


def test_docker_loads_a_layer_that_is_not_compressed(
    store: ContentStore, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """Model layers go as they are when compressing them does not pay."""
    raw = make_tar({"model": b"weights" * 500})
    layer = store.put_bytes(raw).describe(OCI_LAYER_TAR)
    config = ImageConfig(PLATFORMS[0], (ImageDigest.of(raw),))
    config_blob = store.put_bytes(config.to_bytes()).describe(OCI_CONFIG)
    manifest = store.put_bytes(ImageManifest(config_blob, (layer,)).to_bytes()).describe(OCI_MANIFEST)
    path = write(store, tmp_path / "plain.tar", {"export-test/plain:1": manifest})
    docker_engine.run("load", "-i", str(path))
    assert docker_engine.run("image", "inspect", "--format", "{{.Id}}", "export-test/plain:1") == str(
        config_blob.digest
    )
    docker_engine.run("rmi", "export-test/plain:1")


def test_skopeo_reads_one_platform_and_all_with_their_digests(store: ContentStore, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed: apt-get install skopeo")
    index = put_image(store, LAYERS)
    arm = platform_manifest(store, index, PLATFORMS[1])
    for name, image in {"all": index, "arm": arm}.items():
        path = write(store, tmp_path / f"{name}.tar", {"digits:1": image})
        raw = subprocess.run(
            [skopeo, "inspect", "--raw", f"oci-archive:{path}"], capture_output=True, check=True, timeout=60
        )
        assert raw.stdout == store.read_bytes(image.digest)


def test_the_file_is_the_same_each_time_and_holds_each_blob_once(store: ContentStore, tmp_path: Path) -> None:
    index = put_image(store, LAYERS)
    images = {"b:1": index, "a:1": platform_manifest(store, index, PLATFORMS[0])}
    one, two = (write(store, tmp_path / name, images) for name in ("one.tar", "two.tar"))
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        names = tar.getnames()
        assert len(names) == len(set(names))
        listed = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert [entry["RepoTags"] for entry in listed] == [["a:1"], ["b:1"]]
    assert all(name in names for entry in listed for name in [entry["Config"], *entry["Layers"]])


def test_a_platform_the_image_lacks_is_named(store: ContentStore) -> None:
    index = put_image(store, LAYERS)
    with pytest.raises(PlatformNotFoundError, match=r"linux/arm/v7: the index has linux/amd64, linux/arm64"):
        platform_manifest(store, index, Platform.parse("linux/arm/v7"))
    one = platform_manifest(store, index, PLATFORMS[0])
    with pytest.raises(PlatformNotFoundError, match="linux/arm64"):
        platform_manifest(store, one, PLATFORMS[1])
