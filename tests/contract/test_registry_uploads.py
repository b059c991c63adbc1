"""Uploads in pieces: gone on with where the registry allows it, begun anew where not, made smaller where they must be."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from email.utils import formatdate
from pathlib import Path

import pytest
from registry_double import RegistryDouble
from registry_images import put_image
from registry_proxy import Fault, FaultProxy
from registry_servers import PASSWORD, USER, RunningRegistry, debian_registry, embedded_registry

from edge_containers.errors import (
    RegistryBusyError,
    RegistryError,
    RegistryForbiddenError,
    RegistryFullError,
    RegistryTooLargeError,
    RegistryUnavailableError,
)
from edge_containers.image_model import OCI_LAYER_TAR, Descriptor
from edge_containers.parallel import in_parallel
from edge_containers.registry_answers import retry_after_s
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.registry_upload import UploadFiles
from edge_containers.store import ContentStore
from edge_contracts.redact import Secret

CREDENTIALS = BasicCredentials(USER, Secret(PASSWORD))
MIB = 1 << 20
BLOB = random.Random(7).randbytes(9 * MIB + 5)


@pytest.fixture(params=["docker-registry", "embedded"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningRegistry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    start = {"docker-registry": debian_registry, "embedded": embedded_registry}[request.param]
    with start(folder) as running:
        yield running


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.address) as proxy:
        yield proxy


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


@pytest.fixture
def blob(store: ContentStore) -> Descriptor:
    return store.put_bytes(BLOB).describe(OCI_LAYER_TAR)


def client(address: str, tmp_path: Path, **options: int) -> RegistryClient:
    return RegistryClient(
        address,
        credentials=CREDENTIALS,
        sleep=lambda _: None,
        upload_log=UploadFiles(tmp_path / "uploads"),
        **options,
    )


def index_of(proxy: FaultProxy, method: str, number: int) -> int:
    """Place of the `number`-th request of a method among those seen."""
    return [place for place, each in enumerate(proxy.seen) if each.method == method][number]


def test_a_large_blob_goes_in_pieces_and_arrives_whole(
    proxy: FaultProxy, store: ContentStore, blob: Descriptor, tmp_path: Path
) -> None:
    with client(proxy.address, tmp_path, piece_bytes=2 * MIB) as there:
        assert there.push_blob("pieces", blob, store) == blob.size
        back = ContentStore(tmp_path / "back")
        there.pull_blob("pieces", blob, back)
    assert [each.method for each in proxy.seen].count("PATCH") == 4
    assert back.path(blob.digest).read_bytes() == BLOB
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    "fault", [Fault.CUT_BEFORE_ANSWER, Fault.SERVER_ERROR, Fault.CUT_REQUEST, Fault.REDIRECT]
)
def test_a_piece_that_fails_costs_no_more_than_the_registry_forgets(
    proxy: FaultProxy, store: ContentStore, blob: Descriptor, tmp_path: Path, fault: Fault
) -> None:
    with client(proxy.address, tmp_path, piece_bytes=2 * MIB) as there:
        proxy.arm(-1, fault)
        there.push_blob("dry", blob, store)
        third = index_of(proxy, "PATCH", 2)
        proxy.arm(third, fault)
        sent = there.push_blob("wet", blob, store)
        assert there.head_blob("wet", blob.digest) == blob.size
    # Docker's registry 2.8 keeps the place in the address it answers with: when that is lost, so is the upload.
    forgets = fault in (Fault.CUT_REQUEST, Fault.CUT_BEFORE_ANSWER) and _is_debian(proxy.upstream)
    assert sent <= blob.size + (8 if forgets else 2) * MIB, (fault, sent)
    assert not any(each.has_credentials for each in proxy.seen_elsewhere)


def _is_debian(address: str) -> bool:
    host, _, port = address.partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=5)) as raw:
        raw.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
        return b'Basic realm="test"' in raw.recv(4096)


def test_another_process_goes_on_where_one_was_interrupted(
    proxy: FaultProxy, store: ContentStore, blob: Descriptor, tmp_path: Path
) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(done_bytes: int, _total_bytes: int) -> None:
        if done_bytes > 6 * MIB:
            raise Interrupted

    with client(proxy.address, tmp_path, piece_bytes=2 * MIB) as first, pytest.raises(Interrupted):
        first.push_blob("resumed", blob, store, interrupt)
    (noted,) = (tmp_path / "uploads").iterdir()
    assert noted.stat().st_mode & 0o777 == 0o600
    _wait_for_the_broken_request_to_end()
    with client(proxy.address, tmp_path, piece_bytes=2 * MIB) as second:
        sent = second.push_blob("resumed", blob, store)
        assert second.head_blob("resumed", blob.digest) == blob.size
    assert sent <= blob.size
    assert list((tmp_path / "uploads").iterdir()) == []


def _wait_for_the_broken_request_to_end() -> None:
    """The registry has to notice first that the peer is gone."""
    time.sleep(0.3)


def test_a_body_limit_before_the_registry_makes_pieces_smaller(
    proxy: FaultProxy, store: ContentStore, blob: Descriptor, tmp_path: Path
) -> None:
    proxy.max_body_bytes = MIB
    with client(proxy.address, tmp_path) as there:
        there.push_blob("limited", blob, store)
        assert there.head_blob("limited", blob.digest) == blob.size
        proxy.max_body_bytes = 1000
        with pytest.raises(
            RegistryTooLargeError, match=r"takes no body as large as upload .*client_max_body_size"
        ):
            there.push_blob("tiny", blob, store)


def test_blobs_travel_at_the_same_time_and_the_first_failure_ends_them(
    tmp_path: Path, store: ContentStore
) -> None:
    image = put_image(store, {f"layer-{n}": os.urandom(100_000) for n in range(8)})
    with (
        RegistryDouble() as double,
        RegistryClient(double.address, parallel=4, sleep=lambda _: None) as there,
    ):
        there.push_image(store, image, "many", "1")
        back = ContentStore(tmp_path / "back")
        assert there.pull_whole("many", "1", back) == image
        double.faults.statuses = [(403, {})] * 50
        with pytest.raises(RegistryForbiddenError):
            there.push_image(store, image, "forbidden", "1")
        assert len(double.asked("HEAD", "/forbidden/")) <= 8


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 2:
            raise ValueError("the third")
        assert stop.wait(5)

    started = time.monotonic()
    with pytest.raises(ValueError, match="the third"):
        in_parallel(work, range(4), 4, stop)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, RegistryForbiddenError, "does not permit this to user"),
        (413, RegistryTooLargeError, "takes no body as large as"),
        (429, RegistryBusyError, "wants a pause"),
        (500, RegistryUnavailableError, "is not ready"),
        (507, RegistryFullError, "has no room left"),
        (418, RegistryError, "refused PUT of manifest 1"),
    ],
)
def test_each_refusal_is_an_error_of_its_own(
    store: ContentStore, status: int, kind: type[RegistryError], says: str
) -> None:
    small = store.put_bytes(b"small").describe(OCI_LAYER_TAR)
    with RegistryDouble() as double, ExitStack() as stack:
        there = stack.enter_context(
            RegistryClient(double.address, credentials=CREDENTIALS, sleep=lambda _: None)
        )
        there.head_blob("warm", small.digest)
        double.faults.statuses = [(status, {"Retry-After": "7"})] * 8
        with pytest.raises(kind, match=says) as caught:
            there.push_manifest("digits", "1", b"{}", "x") if status == 418 else there.get_manifest(
                "digits", "1"
            )
    assert type(caught.value) is kind
    assert caught.value.status == status


def test_retry_after_may_be_a_number_or_a_date() -> None:
    assert retry_after_s("3") == 3
    assert 50 < (retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert retry_after_s(formatdate(time.time() - 60, usegmt=True)) == 0
    for broken in ("", "soon", "-1", "1.5", "9" * 400, "Mon, 99 Foo 2026"):
        wait_s = retry_after_s(broken)
        assert wait_s is None or 0 <= wait_s <= 86_400


def test_uploads_go_where_location_says_relative_or_absolute_with_or_without_query(
    registry: RunningRegistry, store: ContentStore
) -> None:
    """Docker's registry answers an absolute address with a query, the embedded one a path without, the double a path with."""
    small = store.put_bytes(b"small").describe(OCI_LAYER_TAR)
    with RegistryClient(registry.address, credentials=CREDENTIALS) as there:
        assert there.push_blob("location", small, store) == small.size
    with RegistryDouble() as double, RegistryClient(double.address) as there:
        assert there.push_blob("location", small, store) == small.size
