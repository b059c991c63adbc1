"""Layers: what is unpacked, and the many that are refused with nothing left behind."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_images import make_tar, put_layer, tar_of

from edge_containers.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    ImageFormatError,
    UnsafeLayerError,
)
from edge_containers.image_model import DOCKER_LAYER_GZIP, OCI_LAYER_GZIP, OCI_LAYER_TAR
from edge_containers.store import ContentStore
from edge_containers.unpack import UnpackLimits, remove_unfinished, unpack_layer
from edge_contracts.image_ref import ImageDigest

Entry = tuple[tarfile.TarInfo, bytes]
LIMITS = UnpackLimits()


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    folder = tmp_path / "layers"
    folder.mkdir()
    return folder


def entry(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> Entry:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    member.size = len(content)
    return member, content


def folder(name: str, mode: int = 0o755) -> Entry:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def unpack(store: ContentStore, layers: Path, *entries: Entry, limits: UnpackLimits = LIMITS) -> Path:
    descriptor, diff_id = put_layer(store, tar_of(entries))
    unpack_layer(store, descriptor, diff_id, layers / "layer", limits)
    return layers / "layer"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_layer_is_unpacked(store: ContentStore, layers: Path) -> None:
    old_mask = os.umask(0o077)
    try:
        root = unpack(
            store,
            layers,
            folder("."),
            folder("./opt"),
            entry("./opt/run", b"#!", mode=0o700),
            entry("opt/deep/data", b"data", mode=0o600),
            hard_link("opt/again", "opt/deep/data"),
            symlink("opt/deep/up", "../run"),
            symlink("opt/dangling", "nowhere"),
            folder("opt"),
        )
    finally:
        os.umask(old_mask)
    assert (root / "opt/deep/up").read_bytes() == b"#!"
    assert (root / "opt/again").samefile(root / "opt/deep/data")
    modes = {name: mode_of(root / name) for name in (".", "opt", "opt/deep", "opt/run", "opt/again")}
    assert modes == {".": 0o755, "opt": 0o755, "opt/deep": 0o755, "opt/run": 0o755, "opt/again": 0o644}
    assert os.listdir(layers) == ["layer"]


@pytest.mark.parametrize("media_type", [OCI_LAYER_TAR, OCI_LAYER_GZIP, DOCKER_LAYER_GZIP])
def test_plain_and_gzip_layers_are_read(store: ContentStore, layers: Path, media_type: str) -> None:
    raw = make_tar({"a": b"a" * 5000})
    blob = store.put_bytes(raw if media_type == OCI_LAYER_TAR else gzip.compress(raw))
    unpack_layer(store, blob.describe(media_type), ImageDigest.of(raw), layers / "layer")
    assert (layers / "layer/a").read_bytes() == b"a" * 5000


def test_other_compression_is_named(store: ContentStore, layers: Path) -> None:
    media_type = "application/vnd.oci.image.layer.v1.tar+zstd"
    blob = store.put_bytes(b"zstd")
    with pytest.raises(ImageFormatError, match=r"must be a plain or gzip-compressed tar, not '.*zstd'"):
        unpack_layer(store, blob.describe(media_type), blob.digest, layers / "layer")
    assert os.listdir(layers) == []


def test_existing_destination_is_taken_as_done(store: ContentStore, layers: Path) -> None:
    descriptor, diff_id = put_layer(store, make_tar({"a": b"1"}))
    unpack_layer(store, descriptor, diff_id, layers / "layer")
    store.delete(descriptor.digest)
    unpack_layer(store, descriptor, diff_id, layers / "layer")
    with pytest.raises(BlobNotFoundError):
        unpack_layer(store, descriptor, diff_id, layers / "other")


REFUSED = {
    "absolute name": ([entry("/etc/passwd", b"x")], "has an absolute path"),
    "parent in name": ([entry("a/../../x", b"x")], "has '..' in its path"),
    "parent alone": ([folder("..")], "has '..' in its path"),
    "absolute link": ([symlink("a", "/etc")], "only relative targets"),
    "link above": ([symlink("a", "..")], "may lie outside the layer"),
    "deep link above": ([symlink("a/b", "../../x")], "may lie outside the layer"),
    "link by a chain": ([symlink("a/b/s", "../.."), symlink("t", "a/b/s/../x")], "may lie outside the layer"),
    "empty link": ([symlink("a", "")], "only relative targets"),
    "through a link": (
        [folder("b"), symlink("a", "b"), entry("a/x", b"x")],
        "runs through the symbolic link 'a'",
    ),
    "through a file": ([entry("a", b"x"), entry("a/x", b"x")], "runs through the file 'a'"),
    "folder over a link": ([symlink("a", "b"), folder("a")], "runs through the symbolic link 'a'"),
    "file over a link": (
        [symlink("a", "b"), entry("a", b"x")],
        "is in the layer twice, first as a symbolic link",
    ),
    "file twice": ([entry("a", b"x"), entry("./a", b"y")], "is in the layer twice, first as a file"),
    "hard link outside": ([hard_link("a", "/etc/passwd")], "has an absolute path"),
    "hard link above": ([hard_link("a", "../x")], "has '..' in its path"),
    "hard link to nothing": ([hard_link("a", "b")], "which is no file before it"),
    "hard link to a link": ([symlink("b", "c"), hard_link("a", "b")], "which is no file before it"),
    "character device": ([entry("null", kind=tarfile.CHRTYPE)], "of tar type b'3'"),
    "block device": ([entry("sda", kind=tarfile.BLKTYPE)], "of tar type b'4'"),
    "fifo": ([entry("pipe", kind=tarfile.FIFOTYPE)], "of tar type b'6'"),
    "setuid": ([entry("su", b"x", mode=0o4755)], "has a setuid or setgid bit (mode 4755)"),
    "setgid": ([entry("su", b"x", mode=0o2755)], "has a setuid or setgid bit (mode 2755)"),
    "setgid folder": ([folder("a", 0o2755)], "has a setuid or setgid bit (mode 2755)"),
    "whiteout": ([entry("a/.wh.b")], "is a whiteout"),
    "opaque whiteout": ([entry(".wh..wh..opq")], "is a whiteout"),
    "name too long": ([entry("n" * 300, b"x")], "a name this file system does not take"),
    "header too long": ([entry("n/" * 40_000, b"x")], "at most 65536 are read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_entry_is_named_and_nothing_is_left(store: ContentStore, layers: Path, case: str) -> None:
    entries, message = REFUSED[case]
    with pytest.raises(UnsafeLayerError) as caught:
        unpack(store, layers, entry("first", b"harmless"), *entries)
    assert message in str(caught.value)
    assert os.listdir(layers) == []


def test_bomb_is_stopped_at_the_limit(store: ContentStore, layers: Path) -> None:
    with pytest.raises(UnsafeLayerError, match="unpacks to more than 100000 bytes"):
        unpack(store, layers, entry("zeros", bytes(5_000_000)), limits=UnpackLimits(total_bytes=100_000))
    assert os.listdir(layers) == []


def test_bomb_behind_the_end_mark_is_stopped_too(store: ContentStore, layers: Path) -> None:
    descriptor, diff_id = put_layer(store, make_tar({"a": b"1"}) + bytes(5_000_000))
    with pytest.raises(UnsafeLayerError, match="unpacks to more than 100000 bytes"):
        unpack_layer(store, descriptor, diff_id, layers / "layer", UnpackLimits(total_bytes=100_000))


def test_entries_are_limited(store: ContentStore, layers: Path) -> None:
    entries = [entry(f"f{n}") for n in range(11)]
    with pytest.raises(UnsafeLayerError, match="'f10' is one more than the 10 entries"):
        unpack(store, layers, *entries, limits=UnpackLimits(entries=10))
    assert os.listdir(layers) == []
    unpack(store, layers, *entries[:10], limits=UnpackLimits(entries=10))


def test_bad_blob_is_removed_before_it_is_parsed(store: ContentStore, layers: Path) -> None:
    descriptor, diff_id = put_layer(store, make_tar({"a": b"1"}))
    path = store.path(descriptor.digest)
    path.write_bytes(b"\x1f\x8b" + path.read_bytes()[2:-1] + b"\xff")
    with pytest.raises(DigestMismatchError, match=str(descriptor.digest)):
        unpack_layer(store, descriptor, diff_id, layers / "layer")
    assert not store.has(descriptor.digest)
    assert os.listdir(layers) == []


def test_content_that_is_not_its_diff_id_is_refused(store: ContentStore, layers: Path) -> None:
    descriptor, diff_id = put_layer(store, make_tar({"a": b"1"}))
    with pytest.raises(DigestMismatchError) as caught:
        unpack_layer(store, descriptor, ImageDigest.of(b"other"), layers / "layer")
    assert (caught.value.expected, caught.value.found) == (str(ImageDigest.of(b"other")), str(diff_id))
    assert os.listdir(layers) == []


@pytest.mark.parametrize("cut", [100, 600, 5000])
def test_cut_tar_is_refused(store: ContentStore, layers: Path, cut: int) -> None:
    whole = make_tar({"a": bytes(5000)})
    descriptor, _ = put_layer(store, whole[:cut])
    with pytest.raises((ImageFormatError, DigestMismatchError)):
        unpack_layer(store, descriptor, ImageDigest.of(whole), layers / "layer")
    assert os.listdir(layers) == []


def test_cut_gzip_is_damaged(store: ContentStore, layers: Path) -> None:
    raw = make_tar({"a": os.urandom(5000)})
    blob = store.put_bytes(gzip.compress(raw)[:-100])
    with pytest.raises(ImageFormatError, match=f"layer {blob.digest} is damaged"):
        unpack_layer(store, blob.describe(OCI_LAYER_GZIP), ImageDigest.of(raw), layers / "layer")
    assert os.listdir(layers) == []


def test_what_a_killed_process_left_is_removed(store: ContentStore, layers: Path) -> None:
    for name in (".a.0123.unpacking", ".b.4567.unpacking"):
        (layers / name / "opt").mkdir(parents=True)
    held = os.open(layers / ".b.4567.unpacking", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    unpack(store, layers, entry("a"))
    remove_unfinished(layers)
    os.close(held)
    assert sorted(os.listdir(layers)) == [".b.4567.unpacking", "layer"]


# Mostly harmless parts, few of them: a hostile entry must meet others that were accepted to have an effect.
names = st.lists(st.sampled_from(["a", "b", "c"] * 4 + ["..", "."]), min_size=1, max_size=3).map("/".join)
targets = st.lists(st.sampled_from(["a", "b", "..", ".."]), min_size=1, max_size=4).map("/".join) | st.just(
    "/a"
)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE] * 6
    + [tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
modes = st.sampled_from([0o644] * 15 + [0o755, 0o4755, 0o777])


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(kinds)
    content = b"content" if kind == tarfile.REGTYPE else b""
    name = draw(st.sampled_from([""] * 12 + ["/"])) + draw(names)
    return entry(name, content, kind=kind, link=draw(targets), mode=draw(modes))


@settings(max_examples=40, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=4))
def test_no_tar_reaches_outside_its_folder(members: list[Entry]) -> None:
    """Whole or absent; and when whole, everything in it, followed to its end, lies in it."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (base / "a").write_bytes(b"outside")
        (base / "layers").mkdir()
        store = ContentStore(base / "store")
        try:
            root = unpack(store, base / "layers", *members)
        except ImageFormatError:
            assert os.listdir(base / "layers") == []
        else:
            assert os.listdir(base / "layers") == ["layer"]
            for path in root.rglob("*"):
                assert Path(os.path.realpath(path)).is_relative_to(root.resolve())
                assert path.is_symlink() or mode_of(path) in (0o644, 0o755)
                assert path.is_symlink() or path.is_file() or path.is_dir()
        assert (base / "a").read_bytes() == b"outside"
        assert (base / "a").stat().st_nlink == 1
        assert sorted(os.listdir(base)) == ["a", "layers", "store"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_tar_never_raises_anything_else(data: st.DataObject) -> None:
    raw = bytearray(tar_of([entry("n" * 120, b"x" * 700), symlink("a", "b"), entry("é", b"y")]))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        store = ContentStore(base / "store")
        blob = store.put_bytes(bytes(raw))
        try:
            unpack_layer(store, blob.describe(OCI_LAYER_TAR), blob.digest, base / "layer")
        except ImageFormatError:
            pass
        assert set(os.listdir(base)) <= {"store", "layer"}


def test_long_names_are_read(store: ContentStore, layers: Path) -> None:
    name = "/".join(["folder" * 10] * 5) + "/ü"
    assert (unpack(store, layers, entry(name, b"x")) / name).read_bytes() == b"x"


def test_gnu_format_is_read(store: ContentStore, layers: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(entry("n" * 150)[0])
    descriptor, diff_id = put_layer(store, buffer.getvalue())
    unpack_layer(store, descriptor, diff_id, layers / "layer")
    assert os.listdir(layers / "layer") == ["n" * 150]


FULL_DISK = """
import sys
from pathlib import Path
from edge_containers.errors import DiskFullError
from edge_containers.image_model import OCI_LAYER_GZIP, Descriptor
from edge_containers.store import ContentStore
from edge_containers.unpack import unpack_layer
from edge_contracts.image_ref import ImageDigest

store, small_disk, digest, size, diff_id = sys.argv[1:]
descriptor = Descriptor(OCI_LAYER_GZIP, ImageDigest.parse(digest), int(size))
try:
    unpack_layer(ContentStore(Path(store)), descriptor, ImageDigest.parse(diff_id), Path(small_disk) / "layer")
except DiskFullError as error:
    print(error.code, sorted(each.name for each in Path(small_disk).iterdir()))
"""


def test_full_disk_leaves_no_half_layer(store: ContentStore, tmp_path: Path) -> None:
    """On a real full file system: a tmpfs of 1 MB in a mount namespace of its own."""
    descriptor, diff_id = put_layer(store, make_tar({"a": b"a", "zeros": bytes(3_000_000)}))
    small_disk = tmp_path / "small"
    small_disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m tmpfs "{small_disk}" && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", mount, "sh"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30, check=False).returncode != 0:
        pytest.skip("needs unprivileged user namespaces, for a full file system of its own")
    names = (store.root, small_disk, descriptor.digest, descriptor.size, diff_id)
    done = subprocess.run(
        [*unshare, sys.executable, "-c", FULL_DISK, *map(str, names)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("disk-full []\n", "")
