"""Store and forward: order, bounds, the declared drop order, and what a restart finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.edge_hub.router import UPSTREAM, Delivery
from edge_agent.edge_hub.store import MessageStore, StoreFullError
from edge_contracts.messages import Message

Open = Callable[..., MessageStore]


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Opens the store of this test's folder; every one is closed at the end."""
    with ExitStack() as closing:

        def open_store(max_bytes: int = 10_000) -> MessageStore:
            store = MessageStore(tmp_path / "messages.db", max_bytes, now=clock)
            closing.callback(store.close)
            return store

        yield open_store


def bodies(store: MessageStore, endpoint: str = UPSTREAM) -> list[bytes]:
    return [stored.message.body for stored in store.next_batch(endpoint, 100)]


def to_upstream(priority: int = 5, ttl_s: int | None = None) -> tuple[Delivery, ...]:
    return (Delivery(UPSTREAM, priority, ttl_s),)


def test_messages_come_out_by_priority_then_age(opened: Open) -> None:
    store = opened()
    for body, priority in ((b"a", 5), (b"b", 0), (b"c", 5), (b"d", 0)):
        store.append(Message(body), to_upstream(priority))
    assert bodies(store) == [b"b", b"d", b"a", b"c"]


def test_a_message_survives_a_restart_whole(opened: Open) -> None:
    message = Message(
        b"\x00\xff",
        message_id="7",
        content_type="application/json",
        connection_module_id="scorer",
        properties={"kind": "ü"},
    )
    store = opened()
    store.append(message, to_upstream())
    store.close()
    assert [stored.message for stored in opened().next_batch(UPSTREAM, 10)] == [message]


def test_expired_messages_are_dropped_and_counted(opened: Open, clock: Clock) -> None:
    store = opened()
    store.append(Message(b"short"), to_upstream(ttl_s=10))
    store.append(Message(b"for ever"), to_upstream(ttl_s=None))
    clock.time += 10
    assert bodies(store) == [b"for ever"]
    assert store.dropped == {"ttl_expiry": 1}


def test_a_full_store_drops_expired_then_least_urgent_then_oldest(opened: Open, clock: Clock) -> None:
    store = opened(max_bytes=400)
    store.append(Message(b"x" * 90), (Delivery("/modules/m/inputs/i", 0, 5),))
    store.append(Message(b"1" * 90), to_upstream(9))
    store.append(Message(b"2" * 90), to_upstream(9))
    store.append(Message(b"3" * 90), to_upstream(0))
    clock.time += 5
    store.append(Message(b"4" * 90), to_upstream(5))  # the expired one makes room
    store.append(Message(b"5" * 90), to_upstream(5))  # the oldest of priority 9 goes
    assert [body[:1] for body in bodies(store)] == [b"3", b"4", b"5", b"2"]
    assert store.dropped == {"ttl_expiry": 1, "store_full": 1}
    assert store.used_bytes <= 400


def test_a_message_that_can_never_fit_is_refused_and_nothing_is_lost(opened: Open) -> None:
    store = opened(max_bytes=400)
    store.append(Message(b"kept"), to_upstream())
    with pytest.raises(StoreFullError, match=r"message of 1\d\d\d bytes .* store of 400 bytes"):
        store.append(Message(b"x" * 1000), to_upstream())
    assert bodies(store) == [b"kept"]


def test_files_are_the_agents_alone(opened: Open, tmp_path: Path) -> None:
    opened()
    assert (tmp_path / "messages.db").stat().st_mode & 0o777 == 0o600


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 60), st.booleans()), max_size=25
    )
)
def test_the_bound_holds_and_the_count_agrees_with_what_is_held(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int, bool]]
) -> None:
    clock = Clock()
    with closing(MessageStore(tmp_path_factory.mktemp("store") / "m.db", 200, now=clock)) as store:
        for endpoint, priority, size, remove in operations:
            store.append(Message(b"x" * size), (Delivery(endpoint, priority, 3),))
            clock.time += 1
            if remove and (batch := store.next_batch(endpoint, 2)):
                store.remove([stored.id for stored in batch])
            held = [s for e in store.endpoints() for s in store.next_batch(e, 100)]
            assert store.used_bytes == sum(len(s.message.body) + len("[{},{}]") for s in held) <= 200
