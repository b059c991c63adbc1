"""Layers: the same files give the same bytes, everywhere."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import threading
from pathlib import Path

import pytest

from edge_containers.image_model import OCI_LAYER_GZIP, OCI_LAYER_TAR
from edge_containers.store import ContentStore
from publisher.builders.layer import (
    BuiltLayer,
    LayerCache,
    LayerFile,
    files_key,
    layer_key,
    write_layer,
    write_tar,
)
from publisher.errors import BuildCancelledError

FILES = [
    LayerFile("opt/b/prog", b"#!/bin/sh\n", executable=True),
    LayerFile("opt/a", b"a"),
    LayerFile("opt/b/é", b""),
    LayerFile("opt/b/" + "long" * 60, b"long"),
]

# Of FILES; compared across machines and Python versions, so a change is a change of the format (LAYER_FORMAT).
GOLDEN_DIFF_ID = "sha256:62c55bf2b9b83e089763c8984c8ed723fa23d39f36c5586f2a4c188722929fe4"


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "oci")


def tar_bytes(files: list[LayerFile]) -> bytes:
    sink = io.BytesIO()
    write_tar(sink, files)
    return sink.getvalue()


def test_the_tar_is_the_same_on_every_machine(store: ContentStore) -> None:
    assert str(write_layer(store, "model", FILES, compression=0)[1]) == GOLDEN_DIFF_ID


def test_order_umask_and_times_do_not_matter(tmp_path: Path) -> None:
    shuffled = FILES.copy()
    random.Random(7).shuffle(shuffled)
    before = os.umask(0o077)
    try:
        on_disk = [
            LayerFile(file.path, tmp_path / str(n), file.executable) for n, file in enumerate(shuffled)
        ]
        for file, source in zip(on_disk, shuffled, strict=True):
            assert isinstance(file.source, Path) and isinstance(source.source, bytes)
            file.source.write_bytes(source.source)
            os.utime(file.source, (1, 1))
    finally:
        os.umask(before)
    assert tar_bytes(on_disk) == tar_bytes(FILES)


def test_entries_are_sorted_owned_by_root_and_without_time() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(FILES))) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {"opt", "opt/b"} <= {entry.name for entry in entries if entry.isdir()}
    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in entries} == {
        (0, 0, "", "", 0)
    }
    assert {entry.name: entry.mode for entry in entries if entry.isfile()}["opt/b/prog"] == 0o755
    assert {entry.name: entry.mode for entry in entries if entry.isfile()}["opt/a"] == 0o644
    assert [entry.name for entry in entries if entry.pax_headers] == ["opt/b/" + "long" * 60, "opt/b/é"]


def test_compression_changes_the_digest_and_not_the_diff_id(store: ContentStore) -> None:
    stored, stored_id = write_layer(store, "model", FILES, compression=0)
    packed, packed_id = write_layer(store, "model", FILES, compression=1)
    assert (stored.media_type, packed.media_type) == (OCI_LAYER_TAR, OCI_LAYER_GZIP)
    assert stored_id == packed_id == stored.digest
    assert gzip.decompress(store.path(packed.digest).read_bytes()) == tar_bytes(FILES)
    assert packed.annotations == {"edgewright.layer": "model"}


def test_gzip_carries_no_name_and_no_time(store: ContentStore) -> None:
    packed, _ = write_layer(store, "model", FILES, compression=1)
    with store.open(packed.digest) as file:
        header = file.read(10)
    assert header[3] == 0 and header[4:8] == b"\0\0\0\0"


def test_a_stopped_layer_leaves_nothing_in_the_store(store: ContentStore) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(BuildCancelledError):
        write_layer(store, "model", FILES, compression=1, stop=stop)
    assert list((store.root / "blobs" / "sha256").iterdir()) == []
    assert list((store.root / "ingest").glob("*.tmp")) == []


def test_keys_differ_by_role_level_path_content_and_mode() -> None:
    file = LayerFile("a", b"1")
    keys = {
        files_key("script", 1, [file]),
        files_key("model", 1, [file]),
        files_key("script", 2, [file]),
        files_key("script", 1, [LayerFile("b", b"1")]),
        files_key("script", 1, [LayerFile("a", b"2")]),
        files_key("script", 1, [LayerFile("a", b"1", executable=True)]),
        layer_key("script", 1, ["a"]),
    }
    assert len(keys) == 7


def test_the_cache_gives_back_a_layer_until_its_blob_is_gone(store: ContentStore, tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "layers", store)
    descriptor, diff_id = write_layer(store, "model", FILES, compression=1)
    assert cache.get("k", "model") is None
    cache.put("k", BuiltLayer("model", descriptor, diff_id, reused=False, seconds=1.0))
    found = cache.get("k", "model")
    assert found is not None
    assert (found.descriptor, found.diff_id, found.reused) == (descriptor, diff_id, True)
    store.delete(descriptor.digest)
    assert cache.get("k", "model") is None


def test_a_broken_cache_entry_counts_as_absent(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text('{"digest": "sha256:zz"}')
    assert LayerCache(tmp_path, store).get("k", "model") is None
