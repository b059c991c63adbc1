"""What `RegistryClient` does with any registry, and with one that fails in every way a network can."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from registry_double import RegistryDouble, User
from registry_images import PLATFORMS, put_image
from registry_servers import (
    PASSWORD,
    USER,
    RunningRegistry,
    debian_registry,
    double_registry,
    embedded_registry,
    free_port,
)

from edge_containers.errors import (
    BlobNotFoundError,
    ContainerError,
    DigestMismatchError,
    DiskFullError,
    PlatformNotFoundError,
    RegistryAuthError,
    RegistryError,
    RegistryNotFoundError,
    RegistryUnavailableError,
)
from edge_containers.image_model import (
    OCI_LAYER_TAR,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Platform,
)
from edge_containers.registry_client import BasicCredentials, PulledImage, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.redact import Secret
from iot_hub.pki import ensure_pki

AMD64, ARM64 = PLATFORMS
MODEL = random.Random(1).randbytes(300_000)
LAYERS = {"dependencies": random.Random(2).randbytes(400_000), "runtime": b"runtime", "model": MODEL}


@pytest.fixture(params=["double-basic", "double-bearer", "docker-registry", "embedded"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningRegistry]:
    with ExitStack() as stack:
        kind: str = request.param
        if kind.startswith("double"):
            yield stack.enter_context(double_registry(kind.removeprefix("double-")))
            return
        folder = tmp_path / "registry"
        folder.mkdir()
        start = {"docker-registry": debian_registry, "embedded": embedded_registry}[kind]
        yield stack.enter_context(start(folder))


@pytest.fixture
def client(registry: RunningRegistry) -> Iterator[RegistryClient]:
    with RegistryClient(registry.address, credentials=credentials()) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "source")


@pytest.fixture
def device(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "device")


@pytest.fixture
def double() -> Iterator[RegistryDouble]:
    with RegistryDouble(auth="basic", users={USER: User(PASSWORD)}) as double:
        yield double


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def faulty(double: RegistryDouble, pauses: list[float]) -> Iterator[RegistryClient]:
    """A client of the double that notes its pauses instead of waiting."""
    with RegistryClient(double.address, credentials=credentials(), sleep=pauses.append) as client:
        yield client


def credentials(password: str = PASSWORD) -> BasicCredentials:
    return BasicCredentials(USER, Secret(password))


def pull(
    client: RegistryClient, image: Descriptor, store: ContentStore, platform: Platform = AMD64
) -> PulledImage:
    return client.pull_image(ImageRef(client.registry, "digits", digest=image.digest), platform, store)


def manifest_of(store: ContentStore, image: Descriptor) -> ImageManifest:
    """The first platform's manifest."""
    index = ImageIndex.from_bytes(store.read_bytes(image.digest))
    return ImageManifest.from_bytes(store.read_bytes(index.manifests[0].digest))


def blob_names(store: ContentStore) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def unfinished(store: ContentStore) -> list[str]:
    return [path.name for path in (store.root / "ingest").iterdir() if path.suffix in (".part", ".tmp")]


def begin(store: ContentStore, blob: Descriptor, content: bytes) -> None:
    """Leave a part file behind, as a broken download does."""
    with suppress(ConnectionError), store.resumable(blob.digest, blob.size) as part:
        part.write(content)
        raise ConnectionError


# Any registry


def test_pushed_image_is_pulled_whole(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    pushed = client.push_image(source, image, "digits", "1")
    pulled = pull(client, image, device)
    # Three layers that both platforms share, and a config for each.
    assert (pushed.blobs_sent, pushed.blobs_skipped) == (5, 0)
    assert pulled.config.platform == AMD64
    for blob in (pulled.descriptor, *pulled.manifest.blobs):
        assert device.path(blob.digest).read_bytes() == source.path(blob.digest).read_bytes()
    assert pulled.bytes_received == sum(
        path.stat().st_size for path in (device.root / "blobs/sha256").iterdir()
    )


def test_second_push_sends_documents_only(client: RegistryClient, source: ContentStore) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits", "1")
    again = client.push_image(source, image, "digits", "1")
    assert (again.blobs_sent, again.blobs_skipped) == (0, 5)
    assert again.bytes_sent < 4096


def test_second_pull_asks_nobody(client: RegistryClient, source: ContentStore, device: ContentStore) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits", "1")
    first = pull(client, image, device)
    with RegistryClient(client.registry, credentials=credentials("wrong")) as stranger:
        again = pull(stranger, image, device)
    assert again.bytes_received == 0
    assert (again.ref, again.descriptor, again.manifest, again.config) == (
        first.ref,
        first.descriptor,
        first.manifest,
        first.config,
    )


def test_new_model_moves_one_layer(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    first, second = put_image(source, LAYERS), put_image(source, {**LAYERS, "model": MODEL[::-1]})
    client.push_image(source, first, "digits", "1")
    pull(client, first, device)
    pushed = client.push_image(source, second, "digits", "2")
    pulled = pull(client, second, device)
    layer = manifest_of(source, second).layers[2]
    assert (pushed.blobs_sent, pushed.blobs_skipped) == (3, 2)  # the model and two configs
    assert layer.size < pulled.bytes_received < layer.size + 4096


def test_tag_names_what_was_pushed_last(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    first, second = put_image(source, LAYERS), put_image(source, {**LAYERS, "model": b"2"})
    client.push_image(source, first, "digits", "latest")
    client.push_image(source, second, "digits", "latest")
    named = client.head_manifest("digits", "latest")
    pulled = client.pull_image(ImageRef.parse(f"{client.registry}/digits:latest"), ARM64, device)
    assert named is not None and named.digest == second.digest
    assert pulled.ref == ImageRef(client.registry, "digits", digest=second.digest)
    assert pulled.config.platform == ARM64


def test_what_is_not_there_is_not_found(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits")
    absent = Descriptor(OCI_LAYER_TAR, ImageDigest.of(b"absent"), 6)
    assert client.head_blob("digits", absent.digest) is None
    assert client.head_manifest("digits", "absent") is None
    with pytest.raises(
        RegistryNotFoundError, match=f"{client.registry} has no manifest absent in repository 'digits': 404"
    ):
        client.get_manifest("digits", "absent")
    with pytest.raises(RegistryNotFoundError, match="has no blob sha256:"):
        client.pull_blob("digits", absent, device)
    assert blob_names(device) == set()


def test_absent_platform_names_those_there(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits")
    with pytest.raises(PlatformNotFoundError, match=r"linux/arm/v7.*linux/amd64, linux/arm64"):
        pull(client, image, device, Platform.parse("linux/arm/v7"))
    assert blob_names(device) == set()


@pytest.mark.parametrize("password", ["wrong-battery", None])
def test_refused_credentials_name_user_and_repository(
    registry: RunningRegistry, source: ContentStore, password: str | None
) -> None:
    image = put_image(source, LAYERS)
    given = credentials(password) if password is not None else None
    with (
        RegistryClient(registry.address, credentials=given) as client,
        pytest.raises(RegistryAuthError) as caught,
    ):
        client.push_image(source, image, "digits")
    whose = (
        f"refused the credentials of user '{USER}'"
        if password
        else "asks for credentials, and none were given,"
    )
    assert str(caught.value).startswith(f"registry {registry.address} {whose} for repository 'digits': 401 ")
    assert caught.value.next_command == "edgewright registry credentials"
    assert not caught.value.temporary
    assert "wrong-battery" not in repr(caught.value) + str(caught.value)


def test_blobs_are_mounted_from_another_repository(client: RegistryClient, source: ContentStore) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits")
    pushed = client.push_image(source, image, "copies/of-digits", mount_from="digits")
    assert pushed.blobs_sent == 0
    assert client.head_blob("copies/of-digits", manifest_of(source, image).layers[0].digest) is not None


def test_begun_download_is_continued(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    content = source.path(blob.digest).read_bytes()
    begin(device, blob, content[:100_000])
    assert client.pull_blob("digits", blob, device) == blob.size - 100_000
    assert device.path(blob.digest).read_bytes() == content
    assert unfinished(device) == []


def test_progress_ends_at_the_total(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    pushed: list[tuple[int, int]] = []
    pulled: list[tuple[int, int]] = []
    client.push_image(source, image, "digits", progress=lambda *step: pushed.append(step))
    ref = ImageRef(client.registry, "digits", digest=image.digest)
    client.pull_image(ref, AMD64, device, lambda *step: pulled.append(step))
    for steps in (pushed, pulled):
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 600_000


def test_two_threads_pull_one_blob(
    client: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    client.push_image(source, image, "digits")
    images: list[PulledImage] = []
    threads = [threading.Thread(target=lambda: images.append(pull(client, image, device))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({each.descriptor.digest for each in images}) == 1 and len(images) == 3
    assert unfinished(device) == []


def test_memory_does_not_grow_with_the_blob(
    tmp_path: Path, source: ContentStore, device: ContentStore
) -> None:
    """The registry is another process, so what is measured is the client's."""
    with source.writer() as writer:
        for _ in range(24):
            writer.write(random.randbytes(1 << 20))
    blob = writer.blob.describe(OCI_LAYER_TAR)
    with (
        debian_registry(tmp_path) as registry,
        RegistryClient(registry.address, credentials=credentials()) as client,
    ):
        tracemalloc.start()
        try:
            client.push_blob("big", blob, source)
            client.pull_blob("big", blob, device)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert device.is_whole(blob)
    assert peak_bytes < 2 << 20


# The double, failing


def test_cut_connections_are_continued_where_they_broke(
    double: RegistryDouble,
    faulty: RegistryClient,
    source: ContentStore,
    device: ContentStore,
    pauses: list[float],
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    double.faults.drop_after = [0, 150_000, 70_000]
    received = faulty.pull_blob("digits", blob, device)
    ranges = [request.headers.get("Range") for request in double.asked("GET", str(blob.digest))]
    assert len(pauses) == 3 and sorted(pauses) == pauses and max(pauses) <= 10
    assert ranges[:2] == [None, None] and len(ranges) == 4
    assert received == blob.size, "no byte was fetched twice"


def test_four_cut_connections_are_the_end_and_keep_what_came(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    double.faults.drop_after = [70_000] * 4
    with pytest.raises(RegistryUnavailableError, match="is not reachable for repository 'digits'") as caught:
        faulty.pull_blob("digits", blob, device)
    assert caught.value.temporary
    kept = device.pending_bytes(blob.digest)
    assert 0 < kept < blob.size and not device.has(blob.digest)
    assert faulty.pull_blob("digits", blob, device) == blob.size - kept


def test_interrupted_pull_leaves_no_document(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    double.faults.drop_after = [0] * 4
    with pytest.raises(RegistryUnavailableError):
        pull(faulty, image, device)
    assert device.find_image(image.digest, AMD64) is None
    assert pull(faulty, image, device).config.platform == AMD64


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_temporary_answers_are_tried_four_times(
    double: RegistryDouble, faulty: RegistryClient, pauses: list[float], status: int
) -> None:
    double.faults.statuses = [(status, {})] * 4
    with pytest.raises(RegistryUnavailableError, match=f"repository 'digits': {status} ") as caught:
        faulty.get_manifest("digits", "1")
    assert (caught.value.status, caught.value.temporary, len(pauses)) == (status, True, 3)
    assert len(double.requests) == 4


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 501, 507])
def test_final_answers_are_not_tried_again(
    double: RegistryDouble, faulty: RegistryClient, status: int
) -> None:
    double.faults.statuses = [(status, {})] * 4
    with pytest.raises(RegistryError) as caught:
        faulty.get_manifest("digits", "1")
    assert (caught.value.status, caught.value.temporary, len(double.requests)) == (status, False, 1)


def test_retry_after_is_obeyed_up_to_ten_seconds(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, pauses: list[float]
) -> None:
    image = put_image(source, LAYERS)
    double.faults.statuses = [(429, {"Retry-After": "3"}), (503, {"Retry-After": "600"})]
    faulty.push_image(source, image, "digits")
    assert 3.0 <= pauses[0] <= 3.3 and 10.0 <= pauses[1] <= 11.0


def test_flipped_bit_is_refused_and_nothing_kept(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[2]
    double.faults.flip = {blob.digest}
    with pytest.raises(DigestMismatchError) as caught:
        pull(faulty, image, device)
    message = str(caught.value)
    assert caught.value.expected == str(blob.digest) != caught.value.found
    assert all(
        part in message for part in (caught.value.expected, caught.value.found, double.address, "'digits'")
    )
    assert not device.has(blob.digest) and unfinished(device) == []
    assert device.find_image(image.digest, AMD64) is None


def test_damaged_part_file_does_not_accuse_the_registry(
    faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    begin(device, blob, bytes(100_000))
    assert faulty.pull_blob("digits", blob, device) == 2 * blob.size - 100_000
    assert device.path(blob.digest).read_bytes() == source.path(blob.digest).read_bytes()


def test_registry_without_ranges_sends_all_again(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    begin(device, blob, source.path(blob.digest).read_bytes()[:100_000])
    double.faults.ignore_range = True
    assert faulty.pull_blob("digits", blob, device) == blob.size


def test_blob_that_ends_early_is_no_blob(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    double.faults.short = {blob.digest}
    with pytest.raises(RegistryUnavailableError, match=f"of a blob's {blob.size} bytes and no more"):
        faulty.pull_blob("digits", blob, device)
    assert not device.has(blob.digest)


def test_blob_longer_than_announced_is_cut_off(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    double.faults.long = {blob.digest}
    with pytest.raises(DigestMismatchError, match=f"found more than {blob.size} bytes"):
        faulty.pull_blob("digits", blob, device)
    assert unfinished(device) == [] and not device.has(blob.digest)


def test_full_disk_leaves_no_part_file(
    faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    blob = manifest_of(source, image).layers[0]
    part = device.root / "ingest" / f"{blob.digest.hex}.part"
    part.symlink_to("/dev/full")  # every write fails with ENOSPC
    with pytest.raises(DiskFullError, match=rf"{blob.size} bytes needed, \d+ bytes free") as caught:
        faulty.pull_blob("digits", blob, device)
    assert caught.value.needed_bytes == blob.size
    assert unfinished(device) == [] and not device.has(blob.digest)


def test_disk_space_is_checked_before_the_first_blob(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    manifest = manifest_of(source, image)
    huge = Descriptor(OCI_LAYER_TAR, ImageDigest.of(b"huge"), 1 << 60)
    data = ImageManifest(manifest.config, (*manifest.layers, huge)).to_bytes()
    double.repository("digits").manifests[str(ImageDigest.of(data))] = (OCI_MANIFEST, data)
    with pytest.raises(DiskFullError) as caught:
        pull(faulty, Descriptor(OCI_MANIFEST, ImageDigest.of(data), len(data)), device)
    assert caught.value.needed_bytes > 1 << 60
    assert double.asked("GET", "/blobs/") == [] and blob_names(device) == set()


def test_credentials_do_not_follow_a_redirect_to_another_host(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    with RegistryDouble(host="127.0.0.2") as storage:
        storage.repositories = double.repositories
        double.faults.redirect_blobs_to = f"http://{storage.address}"
        pull(faulty, image, device)
        assert len(storage.requests) == 4
        assert not any("Authorization" in request.headers for request in storage.requests)
    assert all("Authorization" in request.headers for request in double.asked("GET", "/blobs/"))


def test_redirect_to_plain_http_elsewhere_is_refused(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    double.faults.redirect_blobs_to = "http://storage.example"
    with pytest.raises(
        RegistryError, match=r"sends us to http://storage\.example, and only https is followed"
    ):
        pull(faulty, image, device)


def test_endless_redirects_end(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    faulty.push_image(source, image, "digits")
    double.faults.redirect_blobs_to = f"http://{double.address}"
    with pytest.raises(RegistryError, match="redirected more than 5 times"):
        pull(faulty, image, device)


def test_lost_upload_is_sent_again(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore, pauses: list[float]
) -> None:
    image = put_image(source, LAYERS)
    double.faults.drop_uploads = 2
    assert faulty.push_image(source, image, "digits").blobs_sent == 5
    assert len(pauses) == 2


def test_image_with_a_missing_blob_is_not_begun_to_push(
    double: RegistryDouble, faulty: RegistryClient, source: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    source.delete(manifest_of(source, image).layers[1].digest)
    with pytest.raises(BlobNotFoundError, match=str(manifest_of(source, image).layers[1].digest)):
        faulty.push_image(source, image, "digits")
    assert double.requests == []


def test_nobody_listening_names_host_and_port(pauses: list[float]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        RegistryClient(address, sleep=pauses.append) as client,
        pytest.raises(
            RegistryUnavailableError, match=f"registry {address} is not reachable .*Connection refused"
        ) as caught,
    ):
        client.get_manifest("digits", "1")
    assert len(pauses) == 3
    assert (caught.value.temporary, caught.value.next_command) == (True, "edgewright hub start")


def test_silent_registry_is_given_up(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            RegistryClient(address, timeout_s=0.1, sleep=pauses.append) as client,
            pytest.raises(RegistryUnavailableError, match=r"no answer in 0\.1 s"),
        ):
            client.get_manifest("digits", "1")
    assert len(pauses) == 3


def test_expired_token_is_renewed_once(source: ContentStore) -> None:
    image = put_image(source, LAYERS)
    with (
        RegistryDouble(auth="bearer", users={USER: User(PASSWORD)}) as double,
        RegistryClient(double.address, credentials=credentials()) as client,
    ):
        client.push_image(source, image, "digits")
        double.expire_tokens()
        assert client.push_image(source, image, "digits").blobs_skipped == 5
        assert len(double.asked("GET", "/token")) == 2
        assert "scope=repository%3Adigits%3Apull%2Cpush" in double.asked("GET", "/token")[0].path
        with_token = [request for request in double.requests if not request.path.startswith("/token")]
        assert not any(request.headers.get("Authorization", "").startswith("Basic") for request in with_token)


def test_pull_only_user_is_refused_the_push_after_one_token(source: ContentStore) -> None:
    image = put_image(source, LAYERS)
    with (
        RegistryDouble(auth="bearer", users={USER: User(PASSWORD, frozenset({"pull"}))}) as double,
        RegistryClient(double.address, credentials=credentials()) as client,
        pytest.raises(RegistryAuthError, match=f"user '{USER}' for repository 'digits': 401"),
    ):
        client.push_image(source, image, "digits")
    assert len(double.asked("POST", "/uploads/")) == 2
    assert double.repository("digits").blobs == {}


def test_certificate_of_a_given_authority_is_trusted(
    tmp_path: Path, source: ContentStore, device: ContentStore
) -> None:
    image = put_image(source, LAYERS)
    files = ensure_pki(tmp_path / "pki", [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server_cert, files.server_key)
    with RegistryDouble(ssl_context=context) as double:
        with RegistryClient(double.address, ca_file=files.ca_cert, tls=True) as client:
            client.push_image(source, image, "digits")
            assert pull(client, image, device).config.platform == AMD64
        with (
            RegistryClient(double.address, tls=True) as stranger,
            pytest.raises(
                RegistryUnavailableError, match="has no certificate that is trusted here"
            ) as caught,
        ):
            stranger.get_manifest("digits", image.digest)
    assert not caught.value.temporary


def test_plain_http_is_for_loopback_alone() -> None:
    with pytest.raises(ValueError, match="plain HTTP is for loopback"):
        RegistryClient("registry.example:5000", tls=False)


@pytest.mark.parametrize("name", ["", "http://registry.example", "user:pass@host", "host/path", "host:port"])
def test_registry_must_be_host_and_port(name: str) -> None:
    with pytest.raises(ContainerError, match="registry must be HOST or HOST:PORT"):
        RegistryClient(name)


def test_reference_of_another_registry_is_refused(faulty: RegistryClient, device: ContentStore) -> None:
    with pytest.raises(ValueError, match="must be of registry"):
        faulty.pull_image(ImageRef.parse("elsewhere.example/digits:1"), AMD64, device)
