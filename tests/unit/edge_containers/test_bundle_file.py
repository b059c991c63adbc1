"""Bundles: written the same every time, read strictly, refused whole."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_harness import find_python, version_of

from edge_containers.bundle import INDEX_NAME, BundleError, read_bundle, write_bundle
from edge_containers.image_model import Platform
from edge_containers.process_runtime import UNISOLATED, ProcessRuntime
from edge_containers.store import ContentStore
from edge_contracts.errors import ContainerError
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings, RegistryCredential
from edge_contracts.redact import Secret

PASSWORD = "hunter2-hunter2"
CREDENTIAL = RegistryCredential("r", "registry.example", "u", Secret(PASSWORD))
_found = find_python(UNISOLATED)
assert _found is not None, "no Python that modules may run under"
PYTHON: Path = _found
LABELS: dict[str, str | None] = {"edgewright.python": version_of(PYTHON)}
Files = list[tuple[tarfile.TarInfo, bytes]]


def manifest_of(*images: ImageRef) -> DeploymentManifest:
    modules = [ModuleSettings(f"scorer{n}", image) for n, image in enumerate(images)]
    return DeploymentManifest.assemble(modules, {}, [CREDENTIAL])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ContentStore:
    return ContentStore(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def manifest(source: ContentStore) -> DeploymentManifest:
    digests = [runtime_images.put_image(source, version, labels=LABELS) for version in ("1", "2")]
    return manifest_of(*(ImageRef("registry.example", "digits", None, digest) for digest in digests))


@pytest.fixture(scope="module")
def bundle(source: ContentStore, manifest: DeploymentManifest) -> bytes:
    return written(source, manifest)


def written(
    store: ContentStore, manifest: DeploymentManifest, platform: Platform = runtime_images.PLATFORM
) -> bytes:
    out = io.BytesIO()
    write_bundle(out, store, manifest, platform)
    return out.getvalue()


def read(data: bytes, folder: Path, platform: Platform = runtime_images.PLATFORM) -> Any:
    return read_bundle(io.BytesIO(data), ContentStore(folder), platform, where="b.tar")


def files_of(data: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def packed(files: Files, format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for entry, data in files:
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def with_index(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    (entry, text), *others = files_of(data)
    document = json.loads(text)
    change(document)
    text = json.dumps(document).encode()
    entry.size = len(text)
    return packed([(entry, text), *others])


# Writing.


def test_same_content_gives_the_same_bytes(
    source: ContentStore, manifest: DeploymentManifest, bundle: bytes
) -> None:
    assert written(source, manifest) == bundle
    names = [entry.name for entry, _ in files_of(bundle)]
    assert names[:4] == [INDEX_NAME, "deployment.json", "oci-layout", "index.json"]
    assert names[4:] == sorted(names[4:])
    assert PASSWORD.encode() not in bundle


def test_what_was_written_is_read(
    source: ContentStore, manifest: DeploymentManifest, bundle: bytes, tmp_path: Path
) -> None:
    found = read(bundle, tmp_path)
    assert found.manifest.modules == manifest.modules
    assert found.manifest.credentials == ()
    assert found.images == tuple(sorted((m.image for m in manifest.modules.values()), key=str))
    store = ContentStore(tmp_path)
    for image in found.images:
        assert store.find_image(image.digest, runtime_images.PLATFORM) is not None
    assert read(bundle, tmp_path).manifest == found.manifest, "twice is as once"


def test_only_the_chosen_platform_goes_in(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "two")
    other = Platform("linux", "riscv64")
    here, there = (
        runtime_images.put_image(store, platform.architecture, platform=platform)
        for platform in (runtime_images.PLATFORM, other)
    )
    both = manifest_of(*(ImageRef(None, "digits", None, digest) for digest in (here,)))
    data = written(store, both)
    assert str(there).removeprefix("sha256:").encode() not in data
    with pytest.raises(ContainerError, match="riscv64"):
        written(store, both, other)
    with pytest.raises(BundleError, match=r"is for linux/.*, this device is linux/riscv64"):
        read(data, tmp_path / "device", other)


def test_image_by_tag_and_blob_that_is_damaged_are_refused(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digest = runtime_images.put_image(store, "1")
    with pytest.raises(BundleError, match="by digest"):
        written(store, manifest_of(ImageRef.parse("registry.example/digits:1")))
    layer = max(store.blobs.iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(bytes(layer.stat().st_size))
    with pytest.raises(BundleError, match="damaged"):
        written(store, manifest_of(ImageRef(None, "digits", None, digest)))


# Bad bundles. Each is refused, and nothing of it is kept (below, through the runtime).


def _link(files: Files) -> Files:
    entry = tarfile.TarInfo(files[4][0].name)
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*files[:4], (entry, b""), *files[5:]]


def _renamed(name: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        entry = tarfile.TarInfo(name)
        entry.size = files[4][0].size
        return [*files[:4], (entry, files[4][1]), *files[5:]]

    return change


def _other_content(number: int) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        entry, data = files[number]
        return [*files[:number], (entry, bytes([data[0] ^ 1]) + data[1:]), *files[number + 1 :]]

    return change


BAD_FILES: dict[str, Callable[[Files], Files]] = {
    "link": _link,
    "traversal": _renamed("../../etc/passwd"),
    "absolute name": _renamed("/etc/passwd"),
    "long name": _renamed("x" * 300),
    "other order": lambda files: [*files[:4], files[5], files[4], *files[6:]],
    "index missing": lambda files: files[1:],
    "blob missing": lambda files: files[:-1],
    "blob twice": lambda files: [*files, files[-1]],
    "more behind it": lambda files: [*files, (tarfile.TarInfo("more"), b"")],
    "manifest changed": _other_content(1),
    "layout changed": _other_content(2),
    "blob changed": _other_content(6),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_file_with_other_members_is_refused(name: str, bundle: bytes, tmp_path: Path) -> None:
    with pytest.raises(ContainerError):
        read(packed(BAD_FILES[name](files_of(bundle))), tmp_path)


def _member(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["members"][number].update(values)


BAD_INDEXES: dict[str, Callable[[dict[str, Any]], None]] = {
    "newer format": lambda document: document.update(format=2),
    "no platform": lambda document: document.pop("platform"),
    "platform is a number": lambda document: document.update(platform=7),
    "other release": lambda document: document.update(release="sha256:" + "0" * 64),
    "images by tag": lambda document: document.update(images=["digits:1"]),
    "fewer images": lambda document: document["images"].pop(),
    "members are no list": lambda document: document.update(members=5),
    "size of a bomb": _member(4, size=1 << 50),
    "size as text": _member(4, size="1"),
    "size less than it has": _member(4, size=1),
    "negative size": _member(4, size=-1),
    "large manifest": _member(0, size=1 << 30),
    "blob under another name": _member(4, name="blobs/sha256/" + "0" * 64),
    "blob under a path": _member(4, name="../x"),
    "sha512": _member(4, digest="sha512:" + "0" * 128),
    "blob left out": lambda document: document["members"].pop(),
    "blob twice": lambda document: document["members"].append(document["members"][-1]),
    "many blobs": lambda document: document["members"].extend(document["members"][-1:] * 10_001),
}


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_index_that_says_something_else_is_refused(name: str, bundle: bytes, tmp_path: Path) -> None:
    with pytest.raises(ContainerError):
        read(with_index(bundle, BAD_INDEXES[name]), tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(2048), b"PK\x03\x04" + bytes(600), gzip.compress(bytes(9000))]
)
def test_what_is_no_bundle_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"b\.tar"):
        read(data, tmp_path)


def test_extended_headers_are_refused(bundle: bytes, tmp_path: Path) -> None:
    files = files_of(bundle)
    files[0][0].pax_headers = {"comment": "x" * 4096}
    with pytest.raises(BundleError):
        read(packed(files, tarfile.PAX_FORMAT), tmp_path)


def test_too_large_for_the_disk_is_said_before_it_is_read(bundle: bytes, tmp_path: Path) -> None:
    def huge(document: dict[str, Any]) -> None:
        document["members"][-1]["size"] = 1 << 40

    with pytest.raises(ContainerError, match="not enough disk space"):
        read(with_index(bundle, huge), tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cut_or_changed_anywhere_it_is_refused_or_the_same(
    bundle: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(bundle) - 1))
    folder = tmp_path_factory.mktemp("device")
    good = read(bundle, folder / "good")
    damaged = (
        bundle[:at]
        if data.draw(st.booleans())
        else bundle[:at] + bytes([bundle[at] ^ 0x41]) + bundle[at + 1 :]
    )
    try:
        found = read(damaged, folder / "damaged")
    except ContainerError as error:
        assert error.message
    else:
        assert (found.manifest, found.images) == (good.manifest, good.images), (
            "only the time or owner of a header"
        )


def test_layers_are_not_read_into_memory_at_once(tmp_path: Path, bundle: bytes) -> None:
    class Sipping(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size >= 0
            self.largest = max(self.largest, size)
            return super().read(min(size, 700))  # a pipe gives less than it is asked for

    file = Sipping(bundle)
    read_bundle(file, ContentStore(tmp_path), runtime_images.PLATFORM, where="b.tar")
    assert file.largest <= 1 << 20


# Through a runtime: all of it or nothing.


@pytest.fixture
def runtime(tmp_path: Path) -> ProcessRuntime:
    return ProcessRuntime(tmp_path / "runtime", PYTHON)


def contents(runtime: ProcessRuntime) -> set[Path]:
    folders = (runtime.root / "oci" / "blobs", runtime.root / "layers", runtime.root / "images")
    return {path for folder in folders for path in folder.rglob("*") if ".part" not in path.name}


def test_images_of_a_bundle_are_ready_to_start(runtime: ProcessRuntime, bundle: bytes) -> None:
    found = runtime.load_bundle(io.BytesIO(bundle), "b.tar")
    assert all(runtime.has_image(image) for image in found.images)


@pytest.mark.parametrize("name", ["blob missing", "blob changed", "more behind it"])
def test_nothing_of_a_bad_bundle_is_kept(
    name: str, runtime: ProcessRuntime, source: ContentStore, bundle: bytes, manifest: DeploymentManifest
) -> None:
    first = manifest.modules["scorer0"].image
    runtime.load_bundle(io.BytesIO(written(source, manifest_of(first))), "first.tar")
    before = contents(runtime)
    with pytest.raises(ContainerError):
        runtime.load_bundle(io.BytesIO(packed(BAD_FILES[name](files_of(bundle)))), "bad.tar")
    assert contents(runtime) == before
    assert runtime.has_image(first)


def test_bundle_with_an_image_that_cannot_run_here_leaves_nothing(
    runtime: ProcessRuntime, source: ContentStore, manifest: DeploymentManifest
) -> None:
    foreign = runtime_images.put_image(source, "3", labels={"edgewright.python": "3.2"})
    images = [manifest.modules["scorer0"].image, ImageRef(None, "foreign", None, foreign)]
    before = contents(runtime)
    with pytest.raises(ContainerError, match=r"3\.2"):
        runtime.load_bundle(io.BytesIO(written(source, manifest_of(*images))), "b.tar")
    assert contents(runtime) == before


def test_unknown_digest_is_no_image(tmp_path: Path) -> None:
    missing = ImageRef(None, "digits", None, ImageDigest.of(b"nothing"))
    with pytest.raises(ContainerError, match="is not in the content store"):
        written(ContentStore(tmp_path), manifest_of(missing))
