"""The content store: blobs whole or absent, tags, clean-up; and that it is a layout `skopeo` reads."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from registry_images import PLATFORMS, put_image

from edge_containers.errors import (
    BlobNotFoundError,
    ContainerError,
    DigestMismatchError,
    DiskFullError,
    ImageFormatError,
    PlatformNotFoundError,
)
from edge_containers.image_model import OCI_INDEX, ImageIndex, ImageManifest, Platform
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest

AMD64, ARM64 = PLATFORMS
HELLO = ImageDigest.of(b"hello")


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


def files(store: ContentStore) -> set[str]:
    """Everything in the store but its fixed files."""
    paths = (path for path in store.root.rglob("*") if path.is_file() or path.is_symlink())
    return {path.name for path in paths} - {"oci-layout", "index.json", "index.lock"}


def test_blob_is_stored_under_its_digest(store: ContentStore) -> None:
    blob = store.put_bytes(b"hello")
    assert blob == (HELLO, 5)
    assert store.read_bytes(HELLO) == b"hello"
    assert files(store) == {HELLO.hex}


def test_writer_verifies_and_leaves_nothing_of_a_mismatch(store: ContentStore) -> None:
    with pytest.raises(DigestMismatchError) as caught, store.writer(HELLO, source="the test") as writer:
        writer.write(b"hellO")
    assert str(caught.value) == (
        f"content of the test does not match its digest: expected {HELLO}, found {ImageDigest.of(b'hellO')}"
    )
    assert files(store) == set()


def test_writer_leaves_nothing_of_a_failure(store: ContentStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.write(b"hel")
        raise KeyboardInterrupt
    assert files(store) == set()


def test_part_survives_a_failure_and_is_continued(store: ContentStore) -> None:
    with suppress(ConnectionError), store.resumable(HELLO, 5) as part:
        part.write(b"hel")
        raise ConnectionError
    assert store.pending_bytes(HELLO) == 3
    with store.resumable(HELLO, 5) as part:
        assert part.size == 3
        part.write(b"lo")
    assert store.read_bytes(HELLO) == b"hello"
    assert files(store) == {HELLO.hex}


def test_part_with_wrong_bytes_is_removed(store: ContentStore) -> None:
    with pytest.raises(DigestMismatchError), store.resumable(HELLO, 5) as part:
        part.write(b"hellO")
    assert files(store) == set()


def test_part_larger_than_the_blob_is_begun_anew(store: ContentStore) -> None:
    with suppress(ConnectionError), store.resumable(HELLO, 9) as part:
        part.write(b"hello you")
        raise ConnectionError
    with store.resumable(HELLO, 5) as part:
        assert part.size == 0
        part.write(b"hello")
    assert store.read_bytes(HELLO) == b"hello"


def test_second_writer_of_a_part_writes_its_own_file(store: ContentStore) -> None:
    with store.resumable(HELLO, 5) as first:
        first.write(b"hel")
        with store.resumable(HELLO, 5) as second:
            assert second.size == 0
            second.write(b"hello")
        first.write(b"lo")
    assert files(store) == {HELLO.hex}


def test_full_disk_says_needed_and_free_and_leaves_nothing(store: ContentStore) -> None:
    part = store.root / "ingest" / f"{HELLO.hex}.part"
    part.symlink_to("/dev/full")  # every write fails with ENOSPC
    with pytest.raises(DiskFullError) as caught, store.resumable(HELLO, 5) as writer:
        writer.write(b"hello")
    assert (caught.value.needed_bytes, caught.value.code) == (5, "disk-full")
    assert f"in {store.root}: 5 bytes needed, {caught.value.free_bytes} bytes free" in str(caught.value)
    assert files(store) == set()


def test_space_is_checked_before_it_is_needed(store: ContentStore) -> None:
    store.require_space(1)
    with pytest.raises(DiskFullError, match="bytes needed"):
        store.require_space(1 << 60)


def test_damaged_document_is_found_and_removed(store: ContentStore) -> None:
    store.put_bytes(b"hello")
    store.path(HELLO).write_bytes(b"hellO")
    with pytest.raises(DigestMismatchError, match=str(HELLO)):
        store.read_bytes(HELLO)
    assert not store.has(HELLO)


def test_absent_blob_names_digest_and_store(store: ContentStore) -> None:
    for read in (store.open, store.read_bytes, store.read_json, store.size):
        with pytest.raises(BlobNotFoundError, match=f"{HELLO} is not in the content store {store.root}"):
            read(HELLO)


def test_only_sha256_is_stored(store: ContentStore) -> None:
    with pytest.raises(ImageFormatError, match="must be sha256"):
        store.path(ImageDigest("sha512", "0" * 128))


def test_tag_moves_and_keeps_annotations(store: ContentStore) -> None:
    first, second = put_image(store, {"a": b"1"}), put_image(store, {"a": b"2"})
    store.tag("digits:1", first)
    store.tag("other", first)
    store.tag("digits:1", second.annotated(kind="scoring"))
    assert store.tags() == {"other": first, "digits:1": second.annotated(kind="scoring")}
    store.untag("digits:1")
    assert store.resolve("digits:1") is None
    assert ContentStore(store.root).resolve("other") == first


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/", "a..b", "ä"])
def test_tag_must_be_a_name_of_the_layout(store: ContentStore, name: str) -> None:
    with pytest.raises(ContainerError, match="image name must be"):
        store.tag(name, put_image(store, {"a": b"1"}))
    assert store.tags() == {}


def test_tag_of_an_absent_blob_is_refused(store: ContentStore) -> None:
    image = put_image(store, {"a": b"1"})
    store.delete(image.digest)
    with pytest.raises(BlobNotFoundError):
        store.tag("a", image)


def test_tags_of_many_writers_all_stay(store: ContentStore) -> None:
    image = put_image(store, {"a": b"1"})
    threads = [threading.Thread(target=store.tag, args=(f"n{n}", image)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(store.tags()) == {f"n{n}" for n in range(8)}


def test_image_is_found_when_every_blob_is_whole(store: ContentStore) -> None:
    image = put_image(store, {"a": b"1", "b": b"2"})
    found = store.find_image(image.digest, ARM64)
    assert found is not None and found.config.platform == ARM64
    alone = store.find_image(found.descriptor.digest, ARM64)
    assert alone is not None and alone.manifest == found.manifest
    with pytest.raises(PlatformNotFoundError, match=r"not built for linux/amd64: .* says linux/arm64"):
        store.find_image(found.descriptor.digest, AMD64)
    layer = store.path(found.manifest.layers[1].digest)
    layer.write_bytes(layer.read_bytes()[:-1])
    assert store.find_image(image.digest, ARM64) is None
    assert store.find_image(HELLO, ARM64) is None
    with pytest.raises(PlatformNotFoundError):
        store.find_image(image.digest, Platform("linux", "riscv64"))


def test_garbage_is_what_no_tag_and_no_kept_digest_reaches(store: ContentStore) -> None:
    tagged, kept, dead = (put_image(store, {"shared": b"s", "own": own}) for own in (b"1", b"2", b"3"))
    store.tag("tagged", tagged)
    with suppress(ConnectionError), store.resumable(HELLO, 5) as part:
        part.write(b"hel")
        raise ConnectionError
    before = files(store)
    freed = store.collect_garbage([kept.digest])
    assert store.find_image(tagged.digest, AMD64) and store.find_image(kept.digest, ARM64)
    # Its own layer, two configs, two manifests and the index, and the part file.
    assert len(before - files(store)) == 7
    assert not store.has(dead.digest) and freed > 0
    assert store.collect_garbage([kept.digest]) == 0


def test_garbage_collection_keeps_what_is_being_written(store: ContentStore) -> None:
    with store.resumable(HELLO, 5) as part, store.writer() as writer:
        part.write(b"hel")
        writer.write(b"world")
        assert store.collect_garbage() == 0
        part.write(b"lo")
    assert files(store) == {HELLO.hex, ImageDigest.of(b"world").hex}


def test_abandoned_temporary_file_is_collected(store: ContentStore) -> None:
    (store.root / "ingest" / "0123.tmp").write_bytes(b"left by a process that was killed")
    assert store.collect_garbage() == 33
    assert files(store) == set()


def test_locked_part_of_another_process_is_left_alone(store: ContentStore) -> None:
    path = store.root / "ingest" / f"{HELLO.hex}.part"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.collect_garbage() == 0
    assert path.exists()


def test_layout_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(ImageFormatError, match=r"oci-layout: imageLayoutVersion must be 1.0.0, not '2.0.0'"):
        ContentStore(tmp_path)


def test_blobs_are_synced_before_they_appear(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (order.append("rename"), replace(path, target))[1]
    )
    store.put_bytes(b"hello")
    assert order == ["sync", "rename", "sync"]


def test_skopeo_reads_the_layout(store: ContentStore) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    image = put_image(store, {"model.onnx": b"model", "score.py": b"script"})
    store.tag("digits:1", image)
    name = f"oci:{store.root}:digits:1"
    raw = subprocess.run(
        [skopeo, "inspect", "--raw", name], capture_output=True, check=True, timeout=30
    ).stdout
    assert raw == store.read_bytes(image.digest)
    command = [skopeo, "--override-os", "linux", "--override-arch", "arm64", "inspect", name]
    inspected = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    arm64 = ImageIndex.from_bytes(raw).manifests[1]
    layers = ImageManifest.from_bytes(store.read_bytes(arm64.digest)).layers
    assert (inspected["Architecture"], inspected["Labels"]) == ("arm64", {"edgewright.base": "none"})
    assert inspected["Layers"] == [str(layer.digest) for layer in layers]


def test_skopeo_copies_every_platform(store: ContentStore, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    image = put_image(store, {"model.onnx": b"model"})
    store.tag("digits:1", image)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    target = f"oci:{tmp_path / 'copy'}:digits:1"
    command = [skopeo, "--policy", str(policy), "copy", "--all", f"oci:{store.root}:digits:1", target]
    subprocess.run(command, capture_output=True, check=True, timeout=30)
    copied = ContentStore(tmp_path / "copy").resolve("digits:1")
    assert copied is not None
    assert (copied.media_type, copied.digest) == (OCI_INDEX, image.digest)
