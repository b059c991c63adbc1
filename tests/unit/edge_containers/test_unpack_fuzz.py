"""Layers nobody would build: whatever a tar says, unpacking ends whole and inside its folder, or with nothing on disk."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_images import tar_of

from edge_containers.errors import ContainerError, ImageFormatError, UnsafeLayerError
from edge_containers.image_model import OCI_LAYER_GZIP, OCI_LAYER_TAR
from edge_containers.store import ContentStore
from edge_containers.unpack import UnpackLimits, unpack_layer
from edge_contracts.image_ref import ImageDigest

SECRET = b"of the host, outside"
# `scripts/verify transfer` asks for some thousands.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
LIMITS = UnpackLimits(total_bytes=1 << 20, entries=200)

SEGMENTS = st.sampled_from(
    ["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "é", "x" * 300, "outside", "a\n", "\0", "con"]
)
PLAIN = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
WILD = st.one_of(
    st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join),
    st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.text(max_size=20),
)
CLIMBS = st.builds(lambda count, rest: "../" * count + rest, st.integers(0, 4), PLAIN)
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE]
USUAL_TYPES = [tarfile.REGTYPE, tarfile.DIRTYPE, *LINKS]
ODD_TYPES = [
    tarfile.AREGTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    b"V",
    b"Z",
]
USUAL_MODES = [0o644, 0o755, 0o000, 0o777, 0o1777]
ODD_MODES = [0o4755, 0o2755, 0o6777]


@st.composite
def entries(
    draw: st.DrawFn,
    names: st.SearchStrategy[str] = WILD,
    links: st.SearchStrategy[str] = WILD,
    types: Sequence[bytes] = (*USUAL_TYPES, *ODD_TYPES),
    modes: Sequence[int] = (*USUAL_MODES, *ODD_MODES),
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(draw(names))
    member.type = draw(st.sampled_from(types))
    member.linkname = draw(links)
    member.mode = draw(st.sampled_from(modes))
    member.uid = member.gid = draw(st.sampled_from([0, 1000, 1 << 20]))
    content = draw(st.binary(max_size=40)) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else b""
    member.size = len(content)
    return member, content


@contextmanager
def host() -> Iterator[tuple[ContentStore, Path]]:
    """A store, and a folder to unpack into beside a file that must stay as it is."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "outside").write_bytes(SECRET)
        (root / "layers").mkdir()
        yield ContentStore(root / "store"), root / "layers" / "one"


def unpack(raw: bytes, blob: bytes, media_type: str, limits: UnpackLimits = LIMITS) -> None:
    """Unpack and check what must hold however it ended; errors of ours pass through."""
    with host() as (store, target):
        layer = store.put_bytes(blob).describe(media_type)
        try:
            unpack_layer(store, layer, ImageDigest.of(raw), target, limits)
        except ContainerError:
            assert list(target.parent.iterdir()) == []
            raise
        finally:
            assert (target.parent.parent / "outside").read_bytes() == SECRET
            assert {each.name for each in target.parent.parent.iterdir()} == {"outside", "layers", "store"}
        check_tree(target)


def check_tree(root: Path) -> None:
    """Only files, folders and links that stay inside, with no rights of their own."""
    real = root.resolve()
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
            assert stat.S_ISLNK(mode) or stat.S_IMODE(mode) in (0o644, 0o755), path
            # A link may lead nowhere or in a circle; where it leads somewhere, that is inside.
            reached = Path(os.path.realpath(path))
            assert reached == real or real in reached.parents, (path, reached)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries(), max_size=5))
def test_any_entries_stay_inside_or_are_refused(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    check_members(members)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries(PLAIN, CLIMBS, LINKS, USUAL_MODES), min_size=1, max_size=3))
def test_links_stay_inside_however_they_climb(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    check_members(members)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries(PLAIN, CLIMBS, USUAL_TYPES, USUAL_MODES), min_size=2, max_size=6))
def test_entries_never_run_through_links(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    check_members(members)


def check_members(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    try:
        raw = tar_of(members)
    except (ValueError, UnicodeError):
        return  # not even tarfile writes it
    try:
        unpack(raw, raw, OCI_LAYER_TAR)
    except ContainerError:
        return


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_is_an_error_of_ours_or_harmless(data: st.DataObject) -> None:
    raw = bytearray(tar_of([_file("a/one", b"1" * 600), _file("a/two", b"2"), _link("a/three", "one")]))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    blob = data.draw(st.sampled_from([damaged, gzip.compress(damaged, mtime=0)]))
    kind = data.draw(st.sampled_from([OCI_LAYER_TAR, OCI_LAYER_GZIP]))
    try:
        unpack(damaged, blob, kind)
    except ContainerError:
        return


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([OCI_LAYER_TAR, OCI_LAYER_GZIP]))
def test_any_bytes_are_no_crash(blob: bytes, kind: str) -> None:
    try:
        unpack(blob, blob, kind)
    except ContainerError:
        return


def test_bombs_are_stopped_at_the_limit_and_leave_nothing() -> None:
    bomb = tar_of([_file("zeros", bytes(LIMITS.total_bytes + 1))])
    many = tar_of([_file(f"f{n}", b"") for n in range(LIMITS.entries + 1)])
    nested = tar_of([_file("/".join(["d"] * (LIMITS.entries + 1)), b"")])
    for raw in (bomb, many, nested):
        try:
            unpack(raw, gzip.compress(raw, mtime=0), OCI_LAYER_GZIP)
        except UnsafeLayerError:
            continue
        raise AssertionError("a bomb was unpacked")


def test_a_header_that_announces_more_than_there_is_is_damage() -> None:
    raw = bytearray(tar_of([_file("big", b"x")]))
    raw[124:136] = b"77777777777\0"
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    try:
        unpack(bytes(raw), bytes(raw), OCI_LAYER_TAR)
    except ImageFormatError:
        return
    raise AssertionError("8 GiB were believed")


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def _link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.LNKTYPE, target
    return member, b""
