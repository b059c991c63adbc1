from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_values import add_device, new_core, run

from edge_contracts.redact import Secret
from iot_hub.errors import HubStartError, HubStorageError
from iot_hub.identities import IdentityKey, IdentityRequest
from iot_hub.registry_credentials import CredentialRequest, RegistryCredentialRecord
from iot_hub.store import HubStore
from iot_hub.telemetry import TelemetryMessage
from iot_hub.telemetry_log import Retention, TelemetryLog
from iot_hub.twins import TwinRequest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HubStore]:
    opened = HubStore(tmp_path / "hub.db")
    yield opened
    opened.close()


def message(number: int, device: str = "d", size: int = 10, enqueued: float = 0.0) -> TelemetryMessage:
    body = str(number).encode().ljust(size)
    return TelemetryMessage(device, None, enqueued, {"iothub-enqueuedtime": "now"}, {"n": str(number)}, body)


def numbers(page: object) -> list[int]:
    return [int(each.message.properties["n"]) for each in page.messages]  # type: ignore[attr-defined]


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    core, store = new_core(), HubStore(tmp_path / "hub.db")
    key = IdentityKey("d")
    for plan in (
        lambda: core.put_identity(key, IdentityRequest(iot_edge=True, status_reason="why"), None),
        lambda: core.put_identity(key.module("m"), IdentityRequest(managed_by="me"), None),
        lambda: core.put_identity(IdentityKey("gone"), IdentityRequest(), None),
        lambda: core.write_twin(key, TwinRequest({"t": "\ud7ff"}, {"a": {"b": [1, 2.5, None]}}), None),
        lambda: core.report(key.module("m"), {"r": True}),
        lambda: core.delete_identity(IdentityKey("gone"), None),
    ):
        change = plan()
        store.commit(change)
        run(core, change)
    store.close()

    reopened = HubStore(tmp_path / "hub.db")
    copy = new_core()
    copy.apply(reopened.load())
    reopened.close()
    assert list(copy.devices()) == list(core.devices())
    assert copy.modules(key) == core.modules(key)
    for each in (key, key.module("m"), key.module("$edgeAgent")):
        assert copy.twin(each) == core.twin(each)


def test_files_are_for_their_owner_alone(store: HubStore, tmp_path: Path) -> None:
    store.append_telemetry([message(1)])
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "hub.db": 0o600,
        "hub.db-wal": 0o600,
        "hub.db-shm": 0o600,
    }


def test_deleting_an_identity_drops_its_subscriptions(store: HubStore) -> None:
    core = new_core()
    store.commit(core.put_identity(IdentityKey("d"), IdentityRequest(), None))
    add_device(core, "d")
    store.add_subscription(IdentityKey("d"), "a/#")
    store.add_subscription(IdentityKey("d"), "a/#")
    store.add_subscription(IdentityKey("d"), "b/#")
    store.remove_subscription(IdentityKey("d"), "b/#")
    assert store.subscriptions(IdentityKey("d")) == ("a/#",)
    store.commit(core.delete_identity(IdentityKey("d"), None))
    assert store.subscriptions(IdentityKey("d")) == ()


def test_policies_keep_their_keys(store: HubStore) -> None:
    first = store.policies(lambda: Secret("Zmlyc3Q="))
    assert store.policies(lambda: Secret("b3RoZXI=")) == first
    assert set(first) == {"iothubowner", "service", "device", "registryRead", "registryReadWrite"}


def test_password_is_kept_as_a_hash_only(store: HubStore, tmp_path: Path) -> None:
    request = CredentialRequest.parse({"repositories": ["digits", "team/faces"], "ttlSeconds": 60})
    record, password = RegistryCredentialRecord.mint(request, now=100, random_bytes=lambda n: b"\x07" * n)
    store.add_registry_credential(record)
    assert store.registry_credentials() == (record,)
    assert password.reveal().encode() not in (tmp_path / "hub.db-wal").read_bytes()
    assert record.opens_with(password.reveal(), now=159)
    assert not record.opens_with(password.reveal(), now=160)
    assert not record.opens_with(password.reveal() + "x", now=100)
    store.remove_registry_credentials([record.username])
    assert store.registry_credentials() == ()


def test_offsets_go_on_after_a_restart_and_after_everything_was_deleted(tmp_path: Path) -> None:
    for expected in (1, 3):
        store = HubStore(tmp_path / "hub.db")
        store.append_telemetry([message(1), message(2)])
        assert [each.offset for each in store.read_telemetry(None, 1, 10).messages] == [
            expected,
            expected + 1,
        ]
        assert store.trim_telemetry(max_bytes=10**9, oldest=1.0) is False
        assert store.read_telemetry(None, 1, 10).oldest == expected + 2
        store.close()


def test_reading_goes_page_by_page_and_by_device(store: HubStore) -> None:
    store.append_telemetry([message(n, device="ab"[n % 2]) for n in range(10)])
    first = store.read_telemetry("a", 1, 3)
    assert (numbers(first), first.next) == ([0, 2, 4], 6)
    second = store.read_telemetry("a", first.next, 3)
    assert (numbers(second), second.next) == ([6, 8], 11)
    assert numbers(store.read_telemetry(None, None, 3)) == []
    assert store.read_telemetry("nobody", 1, 3).next == 11


def test_log_stays_within_its_size(store: HubStore) -> None:
    for start in range(0, 100, 10):
        store.append_telemetry([message(n, size=1000) for n in range(start, start + 10)])
        while store.trim_telemetry(max_bytes=20_000, oldest=0.0):
            pass
    kept = store.read_telemetry(None, 1, 1000)
    assert sum(each.message.size_bytes for each in kept.messages) <= 20_000
    assert numbers(kept)[-1] == 99
    assert len(kept.messages) >= 17


def test_log_forgets_what_is_old(store: HubStore) -> None:
    store.append_telemetry([message(n, enqueued=n) for n in range(10)])
    assert not store.trim_telemetry(max_bytes=10**9, oldest=7.0)
    assert numbers(store.read_telemetry(None, 1, 10)) == [7, 8, 9]


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    HubStore(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(HubStartError, match="schema 99"):
        HubStore(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_text("not a database, but long enough to be looked at\n" * 100)
    with pytest.raises(HubStartError, match=r"hub\.db"):
        HubStore(tmp_path / "hub.db")


@contextmanager
def no_room_on_the_disk(path: Path) -> Iterator[None]:
    """No file of this process may grow past the size of the largest file in `path`."""
    size = max(file.stat().st_size for file in path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_refused_write_changes_nothing_and_the_next_one_works(store: HubStore, tmp_path: Path) -> None:
    core = new_core()
    add_device(core, "d")
    large = core.write_twin(IdentityKey("d"), TwinRequest({}, {f"k{n}": "x" * 4000 for n in range(8)}), None)
    with no_room_on_the_disk(tmp_path):
        with pytest.raises(HubStorageError, match=r"hub\.db"):
            store.commit(large)
        with pytest.raises(HubStorageError, match=r"hub\.db"):
            store.append_telemetry([message(n, size=4000) for n in range(100)])
    assert store.load().is_empty
    assert store.read_telemetry(None, 1, 10).next == 1
    store.commit(large)
    store.append_telemetry([message(7)])
    assert store.load().twins == large.twins
    assert [each.offset for each in store.read_telemetry(None, 1, 10).messages] == [1]


class CountingStore(HubStore):
    """Keeps how many messages each transaction of the log had."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []

    def append_telemetry(self, messages: Sequence[TelemetryMessage]) -> None:
        self.batches.append(len(messages))
        super().append_telemetry(messages)


async def _with_log(store: HubStore, scenario: Callable[[TelemetryLog], Awaitable[None]]) -> None:
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as reader:
        log = TelemetryLog(store, writer, reader, Retention())
        log.start()
        await scenario(log)
        await log.stop()


def test_messages_that_arrive_together_share_a_transaction(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "hub.db")

    async def scenario(log: TelemetryLog) -> None:
        await asyncio.gather(*(log.append(message(n)) for n in range(200)))
        assert numbers(await log.read(None, 1, 1000, 0)) == list(range(200))

    asyncio.run(_with_log(store, scenario))
    store.close()
    assert sum(store.batches) == 200
    assert len(store.batches) <= 3


def test_reader_is_woken_by_a_message_and_by_the_end(store: HubStore) -> None:
    async def scenario(log: TelemetryLog) -> None:
        waiting = asyncio.ensure_future(log.read("d", None, 10, 30))
        await asyncio.sleep(0.05)
        await log.append(message(1, device="other"))
        await log.append(message(2))
        assert numbers(await asyncio.wait_for(waiting, 5)) == [2]
        waiting = asyncio.ensure_future(log.read("d", None, 10, 30))
        await asyncio.sleep(0.05)
        log.release_readers()
        assert numbers(await asyncio.wait_for(waiting, 5)) == []

    asyncio.run(_with_log(store, scenario))


def test_message_that_is_not_durable_is_not_acknowledged(store: HubStore, tmp_path: Path) -> None:
    async def scenario(log: TelemetryLog) -> None:
        with no_room_on_the_disk(tmp_path), pytest.raises(HubStorageError):
            await log.append(message(1, size=100_000))
        await log.append(message(2))

    asyncio.run(_with_log(store, scenario))
    assert numbers(store.read_telemetry(None, 1, 10)) == [2]
