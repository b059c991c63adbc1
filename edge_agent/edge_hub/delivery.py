"""Pumps: one per endpoint, each empties its queue as fast as the endpoint acknowledges.

A pump sleeps until there is something to do, sends a batch, removes what was acknowledged and starts again from the
most urgent message. A failure keeps everything and waits: 1 s, doubled to 60 s at most, ± 20 % so that a fleet does
not come back in step; a wake-up (the link is back, a new message came for an idle pump) ends the wait early only
when the caller says that the endpoint itself changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from edge_agent.edge_hub.store import StoredMessage
from edge_contracts.errors import EdgewrightError

log = logging.getLogger(__name__)

BATCH = 10  # as the edge hub's default MaxUpstreamBatchSize
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0

Fetch = Callable[[str, int], Awaitable[list[StoredMessage]]]
Remove = Callable[[Sequence[int]], Awaitable[None]]
Send = Callable[[StoredMessage], Awaitable[None]]


class Pump:
    """Delivers one endpoint's messages, at least once and in order of priority.

    `send` returns when the endpoint has acknowledged and raises otherwise.
    """

    def __init__(self, endpoint: str, fetch: Fetch, remove: Remove, send: Send) -> None:
        self.endpoint = endpoint
        self.delivered = 0
        self._fetch, self._remove, self._send = fetch, remove, send
        self._work = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._failures = 0
        self._task = asyncio.create_task(self._run(), name=f"pump {endpoint}")

    def wake(self) -> None:
        """There may be something new to send."""
        self._work.set()

    def endpoint_changed(self) -> None:
        """The endpoint may be back: do not wait for the rest of a back-off."""
        self._failures = 0
        self._retry_now.set()
        self._work.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._work.clear()
            batch = await self._fetch(self.endpoint, BATCH)
            if not batch:
                await self._work.wait()
            elif not await self._send_batch(batch):
                await self._back_off()

    async def _send_batch(self, batch: list[StoredMessage]) -> bool:
        """Send all, remove what was acknowledged; False when any was not."""
        results = await asyncio.gather(*(self._send(stored) for stored in batch), return_exceptions=True)
        acknowledged, failure = [], None
        for stored, result in zip(batch, results, strict=True):
            if result is None:
                acknowledged.append(stored.id)
            else:
                failure = failure or result
        if acknowledged:
            await self._remove(acknowledged)
            self.delivered += len(acknowledged)
            self._failures = 0
        if failure is None:
            return True
        if not isinstance(failure, EdgewrightError | OSError | TimeoutError):
            log.error("delivery to %s failed", self.endpoint, exc_info=failure)
        return False

    async def _back_off(self) -> None:
        self._failures += 1
        delay = min(FIRST_RETRY_S * 2 ** (self._failures - 1), LAST_RETRY_S) * random.uniform(0.8, 1.2)
        if self._failures == 1:
            log.info("delivery to %s waits: not acknowledged", self.endpoint)
        self._retry_now.clear()
        try:
            await asyncio.wait_for(self._retry_now.wait(), delay)
        except TimeoutError:
            pass
