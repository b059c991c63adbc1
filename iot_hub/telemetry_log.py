"""The telemetry log for asyncio: group commit, long poll, retention.

Messages that arrive while a transaction runs wait for the next one together, so that one write to the disk serves many
devices; each `append` returns when its own message is durable.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from iot_hub.errors import HubStorageError
from iot_hub.store import HubStore
from iot_hub.telemetry import TelemetryMessage, TelemetryPage

log = logging.getLogger(__name__)

# What may wait for the disk; beyond it `append` waits, and the MQTT server stops reading from those devices.
PENDING_BYTES = 16 * 1024 * 1024
LONGEST_WAIT_S = 60.0
PAGE_LIMIT = 1000
RETENTION_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the log is kept: at most so many bytes and no message older than this."""

    max_bytes: int = 256 * 1024 * 1024
    max_age_s: float = 7 * 86400


@dataclass(slots=True)
class _Batch:
    durable: asyncio.Future[None]
    messages: list[TelemetryMessage] = field(default_factory=list)


class TelemetryLog:
    """Appends through the store's one writing thread, reads through another.

    Args:
        writer: executor with one thread, shared with the store's other writes.
        reader: executor with one thread.
    """

    def __init__(
        self,
        store: HubStore,
        writer: Executor,
        reader: Executor,
        retention: Retention,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._writer = writer
        self._reader = reader
        self._retention = retention
        self._now = now
        self._batch: _Batch | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._pending_bytes = 0
        self._written = asyncio.Event()
        self._closing = asyncio.Event()

    def start(self) -> None:
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def release_readers(self) -> None:
        """Let waiting readers go with what there is; none waits any more."""
        self._closing.set()

    async def stop(self) -> None:
        """Make what was appended durable."""
        self.release_readers()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._flusher is not None:
            await asyncio.gather(self._flusher, return_exceptions=True)

    async def append(self, message: TelemetryMessage) -> None:
        """Return when `message` is durable.

        Raises:
            HubStorageError: it is not; nothing of its batch was kept.
        """
        while self._pending_bytes > PENDING_BYTES:
            await self._written.wait()
        if self._batch is None:
            self._batch = _Batch(asyncio.get_running_loop().create_future())
        batch = self._batch
        batch.messages.append(message)
        self._pending_bytes += message.size_bytes
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        # Shielded: one sender that goes away must not take the others' answer with it.
        await asyncio.shield(batch.durable)

    async def read(
        self, device_id: str | None, start: int | None, limit: int, wait_s: float
    ) -> TelemetryPage:
        """Messages from `start` on (None: from now on); with none there yet, wait for some for up to `wait_s`."""
        deadline = asyncio.get_running_loop().time() + min(wait_s, LONGEST_WAIT_S)
        while True:
            written = self._written
            page = await self._read_once(device_id, start, min(limit, PAGE_LIMIT))
            start = page.next
            remaining_s = deadline - asyncio.get_running_loop().time()
            if page.messages or remaining_s <= 0 or not await self._wait_for(written, remaining_s):
                return page

    async def _read_once(self, device_id: str | None, start: int | None, limit: int) -> TelemetryPage:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._store.read_telemetry, device_id, start, limit)

    async def _wait_for(self, written: asyncio.Event, timeout_s: float) -> bool:
        """Whether something was written within the time, and the log is not closing."""
        if self._closing.is_set():
            return False
        waits = [asyncio.ensure_future(event.wait()) for event in (written, self._closing)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return written.is_set() and not self._closing.is_set()

    async def _flush(self) -> None:
        # One turn of the loop, so that what other connections have ready joins the first batch.
        await asyncio.sleep(0)
        while self._batch is not None:
            batch, self._batch = self._batch, None
            await self._write(batch)
            self._pending_bytes -= sum(message.size_bytes for message in batch.messages)
            self._written.set()
            self._written = asyncio.Event()
        self._flusher = None

    async def _write(self, batch: _Batch) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._store.append_telemetry, batch.messages)
        except Exception as error:
            batch.durable.set_exception(error)
            batch.durable.exception()  # marks it as seen, for when every sender has gone away
        else:
            batch.durable.set_result(None)

    async def _keep(self) -> None:
        """Apply the retention, again and again."""
        while True:
            try:
                while await self._trim():
                    pass
            except HubStorageError as error:
                log.error("telemetry retention failed: %s", error)
            await asyncio.sleep(RETENTION_INTERVAL_S)

    async def _trim(self) -> bool:
        def trim() -> bool:
            return self._store.trim_telemetry(
                max_bytes=self._retention.max_bytes, oldest=self._now() - self._retention.max_age_s
            )

        return await asyncio.get_running_loop().run_in_executor(self._writer, trim)
