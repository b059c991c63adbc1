"""Pumps deliver everything at least once, in order, whatever the endpoint does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edge_agent.edge_hub import delivery
from edge_agent.edge_hub.delivery import Pump
from edge_agent.edge_hub.store import StoredMessage
from edge_contracts.messages import Message


class Queue:
    """What the store is to a pump."""

    def __init__(self, count: int) -> None:
        self.waiting = [StoredMessage(n, "e", Message(b"%d" % n)) for n in range(count)]
        self.empty = asyncio.Event()

    async def fetch(self, _endpoint: str, limit: int) -> list[StoredMessage]:
        if not self.waiting:
            self.empty.set()
        return self.waiting[:limit]

    async def remove(self, ids: Sequence[int]) -> None:
        self.waiting = [stored for stored in self.waiting if stored.id not in ids]


def test_all_messages_are_sent_in_order() -> None:
    async def run() -> None:
        queue, sent = Queue(25), []

        async def send(stored: StoredMessage) -> None:
            sent.append(stored.id)

        pump = Pump("e", queue.fetch, queue.remove, send)
        await asyncio.wait_for(queue.empty.wait(), 5)
        await pump.stop()
        assert sent == list(range(25))
        assert pump.delivered == 25

    asyncio.run(run())


def test_a_failed_message_is_kept_and_sent_again_when_the_endpoint_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "FIRST_RETRY_S", 60.0)

    async def run() -> None:
        queue, sent, up = Queue(3), [], False

        async def send(stored: StoredMessage) -> None:
            sent.append(stored.id)
            if stored.id == 1 and not up:
                raise OSError("down")

        pump = Pump("e", queue.fetch, queue.remove, send)
        await asyncio.sleep(0.05)
        assert [stored.id for stored in queue.waiting] == [1]
        up = True
        pump.endpoint_changed()
        await asyncio.wait_for(queue.empty.wait(), 5)
        await pump.stop()
        assert sent == [0, 1, 2, 1]

    asyncio.run(run())


def test_an_idle_pump_wakes_for_new_messages() -> None:
    async def run() -> None:
        queue, sent = Queue(0), asyncio.Event()

        async def send(_stored: StoredMessage) -> None:
            sent.set()

        pump = Pump("e", queue.fetch, queue.remove, send)
        await asyncio.wait_for(queue.empty.wait(), 5)
        queue.waiting.append(StoredMessage(1, "e", Message(b"")))
        pump.wake()
        await asyncio.wait_for(sent.wait(), 5)
        await pump.stop()

    asyncio.run(run())
